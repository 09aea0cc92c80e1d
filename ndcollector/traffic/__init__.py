"""From an output's request to one of its endpoints: which one, how many at a time, with whose credentials.

output ──Request──► Exchange ──► endpoint that is well and has least to do ──► Answer
"""
