"""The command line. `main.py` has the table of commands, `commands/` one file for each,
`output.py` is the only one that prints. Nothing heavy is imported before a command runs."""
