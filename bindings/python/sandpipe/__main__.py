"""`python -m sandpipe`: a grain worker, started by its sandbox."""

import sys

from sandpipe.worker import main

sys.exit(main())
