import sys

import support.toy  # noqa: F401
from helios_cli.cli import main

sys.exit(main())
