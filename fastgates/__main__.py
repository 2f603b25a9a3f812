"""``python -m fastgates`` is the command ``fastgates``."""

import sys

from fastgates.cli import main

sys.exit(main())
