"""`python -m quire_api`: the `quire` command, where no script of that name is on the path."""

import sys

from quire_api.command import main

sys.exit(main())
