"""Before a snapshot and after a restore."""

import os
import sys


def run_hook(message):
    """Runs what the code has registered with `import thaw`; the answer of the hook."""
    name = message["hook"]
    try:
        os.environ.update(message.get("env") or {})
        if name == "after_restore":
            _reseed()
        for function in getattr(sys.modules.get("thaw"), "_hooks", {}).get(name, ()):
            function()
    except BaseException as error:
        from .failures import describe

        return {"hook": name, "error": describe(error)}
    return {"hook": name}


def _reseed():
    """Copies of one memory image would draw the same random numbers. What asks the kernel each time needs nothing."""
    modules = sys.modules
    if "random" in modules:
        modules["random"].seed()
    if "numpy.random" in modules:
        modules["numpy.random"].seed()
    if "ssl" in modules:
        modules["ssl"].RAND_add(os.urandom(64), 64.0)
