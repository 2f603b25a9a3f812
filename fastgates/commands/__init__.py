"""The subcommands of ``fastgates``, a module each.

Each has ``add_parser(commands)``, which adds its options and sets ``run``, a function from the
parsed arguments to the exit code. At import a command takes what describes its options only; what
does the work is imported when it runs.
"""
