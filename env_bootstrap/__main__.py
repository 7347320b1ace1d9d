"""`python -m env_bootstrap ...`, and `python path/to/env_bootstrap ...` from any folder.

The second form is for a Python that never looks into the working directory, such as the one in ComfyUI's portable
builds. Kept parsable by any Python, so that an old one gets a sentence instead of a SyntaxError.
"""

import os
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - here an older one is turned away
    sys.stderr.write("error: this is Python %d.%d, and at least 3.10 is needed.\n" % sys.version_info[:2])  # noqa: UP031
    sys.stderr.write("hint:  run the same command with a newer one, for example python3.12 -m env_bootstrap.\n")
    sys.exit(2)

if __package__:
    from .cli import main

    sys.exit(main())
else:
    import runpy

    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    runpy.run_module("env_bootstrap", run_name="__main__", alter_sys=True)
