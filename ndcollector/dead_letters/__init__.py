"""Dead letters as an operator meets them: list, show, send again, remove. The files are ndagent/core/dead_letters.py's.

    letters.py    a line of the file as a Letter, which letters are wanted, reading in bounded memory
    rewrite.py    another file in place of the old one, without the letters that left; appends meanwhile are kept
    progress.py   how far a replay is, durable beside the letters
    rebuild.py    letters to batches that an output can be given
    replay.py     one replay
    desk.py       what the running collector does for operators; routes.py its admin routes
    command.py    `ndcollector dlq`, with asked.py (which letters are meant) and show_command.py (ls and show)
"""
