import sys

import train.toy  # noqa: F401

from helios_cli.cli import main

sys.exit(main())
