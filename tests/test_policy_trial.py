"""The trial of a new policy, in simulated time: what rolls back, and what must not."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from ndagent.policy_trial import Phase, Trial, TrialTimes

TIMES = TrialTimes()
DAY = 86400


@dataclass
class Simulation:
    """An agent with an old and a new policy, and a collector with outages; one probe in five seconds."""

    new_works: bool
    old_works: bool
    outages: list[tuple[int, int]] = field(default_factory=list)
    probe: int = 5
    now: int = 0
    switches: list[int] = field(default_factory=list)

    def run(self, until: int, phase: Phase = Phase.NEW) -> Phase:
        """The phase it ends in."""
        trial = Trial(TIMES, now=self.now, phase=phase)
        while self.now < until and not trial.is_over:
            used_old = trial.uses_old
            works = self.old_works if used_old else self.new_works
            is_up = not any(start <= self.now < end for start, end in self.outages)
            trial.tell(reached=works and is_up, now=self.now)
            if trial.uses_old != used_old:
                self.switches.append(self.now)
            self.now += self.probe
        return trial.phase


def test_a_policy_that_works_is_kept_at_the_first_answer() -> None:
    """No waiting for the probation to end."""
    simulation = Simulation(new_works=True, old_works=True)
    assert simulation.run(DAY) is Phase.KEPT
    assert simulation.now <= 5
    assert simulation.switches == []


def test_a_policy_that_cuts_the_agent_off_is_rolled_back_in_minutes() -> None:
    """Probation, a look with the old one, a second chance, and back."""
    simulation = Simulation(new_works=False, old_works=True)
    assert simulation.run(DAY) is Phase.ROLLED_BACK
    assert simulation.now <= TIMES.probation_seconds + TIMES.confirmation_seconds + 30


@given(st.integers(0, 5000), st.integers(1, 3 * DAY), st.integers(1, 40))
def test_one_outage_never_rolls_back_a_policy_that_works(start: int, length: int, probe: int) -> None:
    """Wherever it begins and ends: also in the minute in which the old policy is being tried."""
    simulation = Simulation(new_works=True, old_works=True, outages=[(start, start + length)], probe=probe)
    assert simulation.run(start + length + DAY) is Phase.KEPT


@given(st.integers(0, 600), st.integers(0, 3 * DAY))
def test_a_bad_policy_is_rolled_back_after_any_outage(start: int, length: int) -> None:
    """At the latest one longest wait after the collector is back."""
    simulation = Simulation(new_works=False, old_works=True, outages=[(start, start + length)])
    assert simulation.run(10 * DAY) is Phase.ROLLED_BACK
    slack = 2 * TIMES.probation_seconds + TIMES.confirmation_seconds + 60
    assert simulation.now <= max(start + length, 0) + TIMES.longest_seconds + slack


@given(st.booleans(), st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 9000)), max_size=8))
def test_without_an_old_policy_that_works_nothing_is_rolled_back(
    new_works: bool, outages: list[tuple[int, int]]
) -> None:
    """There is nothing to go back to."""
    spans = [(start, start + length) for start, length in outages]
    simulation = Simulation(new_works=new_works, old_works=False, outages=spans)
    assert simulation.run(2 * DAY) is not Phase.ROLLED_BACK


def test_while_nothing_answers_the_tries_get_rare() -> None:
    """A day's outage: doubled waits first, then one try of the old policy in an hour, not one in two minutes."""
    simulation = Simulation(new_works=True, old_works=True, outages=[(0, DAY)])
    simulation.run(DAY)
    assert len(simulation.switches) < 2 * (5 + 24)
    back_to_new, then_old = simulation.switches[1::2], simulation.switches[2::2]
    gaps = [later - earlier for earlier, later in zip(back_to_new, then_old, strict=False)]
    assert gaps == sorted(gaps)
    assert gaps[-1] <= TIMES.longest_seconds + simulation.probe


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4000)), max_size=60))
def test_a_roll_back_needs_old_new_old(answers: list[tuple[bool, int]]) -> None:
    """Whatever the answers: the last three decisions were old reached, new not, old reached."""
    trial, now, decisions = Trial(TIMES, now=0), 0, []
    for reached, seconds in answers:
        now += seconds
        before = trial.phase
        if trial.tell(reached=reached, now=now) is not before:
            decisions.append((before, reached))
    if trial.phase is Phase.ROLLED_BACK:
        assert decisions[-3:] == [(Phase.OLD, True), (Phase.NEW_AGAIN, False), (Phase.OLD_AGAIN, True)]
    assert (trial.phase is Phase.KEPT) == (bool(decisions) and decisions[-1] in [
        (Phase.NEW, True), (Phase.NEW_AGAIN, True),
    ])  # fmt: skip


def test_what_cannot_be_switched_to_decides() -> None:
    """Without the old one the new one goes on; a new one that cannot be put in force again is rolled back."""
    trial = Trial(TIMES, now=0)
    assert trial.tell(reached=False, now=120) is Phase.OLD
    assert trial.could_not_switch(120) is Phase.NEW
    assert trial.deadline == 120 + 2 * TIMES.probation_seconds
    assert trial.tell(reached=False, now=360) is Phase.OLD
    assert trial.tell(reached=True, now=361) is Phase.NEW_AGAIN
    assert trial.could_not_switch(361) is Phase.ROLLED_BACK
    assert trial.tell(reached=True, now=362) is Phase.ROLLED_BACK
