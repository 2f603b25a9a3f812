"""What ``fastgates bench`` measures and how; ``bench/README.md`` is its report.

`cases` names cells and sizes, `peers` builds each contender for a case, `measure` lets them take
turns, `extras` measures what is not a matter of turns, `results` keeps it all, `report` writes it
down, and `command` is the command line. Nothing else in the package imports any of it.
"""
