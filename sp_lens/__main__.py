"""`python -m sp_lens` is `sp-lens`: for `accelerate launch -m sp_lens`, which starts it in several processes."""

import sys

from sp_lens.cli import main

if __name__ == "__main__":
    sys.exit(main())
