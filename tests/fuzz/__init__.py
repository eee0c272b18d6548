"""Coverage-guided fuzzing of the codecs: `python -m tests.fuzz CODEC -runs=20000`, run bounded by tests/badinput."""
