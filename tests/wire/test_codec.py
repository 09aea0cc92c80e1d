"""One module decides which twin runs, and says so."""

import os
import subprocess
import sys
import threading

import pytest
from decode_twins import ARGUMENTS, PURE_ONLY, decoder_class, messages_body

from ndagent.wire.ecs import DecodeSettings

PROBE = (
    "from ndagent.wire.codec import codec_name, make_decoder, make_framer;"
    "from ndagent.wire.ecs import DecodeSettings;"
    "print(codec_name(), make_decoder(DecodeSettings('c')).__class__.__module__, make_framer(100).__class__.__module__)"
)


def probe(**environment: str) -> list[str]:
    """What a fresh interpreter with this environment chooses."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_the_environment_forces_the_pure_twin() -> None:
    """The way to rule the compiled codec out when something looks wrong."""
    assert probe(ND_PURE_CODEC="1") == ["pure", "ndagent.wire.decoder", "ndagent.wire.framing"]


@pytest.mark.skipif(PURE_ONLY, reason="ND_PURE_CODEC=1: the compiled twin may not have been built")
def test_the_compiled_twin_is_chosen_where_it_was_built() -> None:
    """An extension that is there but not used would cost 50 times the CPU in silence."""
    assert probe(ND_PURE_CODEC="") == ["compiled", "ndagent.wire._codec", "ndagent.wire._codec"]


@pytest.mark.parametrize("twin", ["pure"] if PURE_ONLY else ["pure", "compiled"])
def test_one_decoder_serves_many_threads(twin: str) -> None:
    """Records decode in a pool; the compiled twin lets go of the GIL, so its state must be its own per call."""
    decoder = decoder_class(twin)(DecodeSettings("c"))
    bodies = [messages_body([b'<13>1 - h%d a %d m [x@1 a="%d"] t' % (n, n, n)] * 200) for n in range(4)]
    expected = [decoder.decode(body, **ARGUMENTS) for body in bodies]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(10):
            same = decoder.decode(bodies[index], **ARGUMENTS) == expected[index]
            wrong.extend([] if same else [index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
