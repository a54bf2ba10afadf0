import sys

from helios_cli.cli import main

sys.exit(main())
