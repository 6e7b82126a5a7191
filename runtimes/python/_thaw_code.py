"""The code of the user: how it is imported, and what has to change when it wakes from a snapshot."""

import os
import sys


def import_module(name, code_dir):
    path = os.path.join(code_dir, *name.split(".")) + ".py"
    loaded = sys.modules.get(name)
    if os.path.isfile(path) and (loaded is not None or name in sys.builtin_module_names):
        # A file named like a module that Python itself runs on (json.py, time.py): it gets another name, or the import
        # would answer with the other one.
        import importlib.util

        other = "_thaw_handler_" + name
        spec = importlib.util.spec_from_file_location(other, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[other] = module
        spec.loader.exec_module(module)
        return module
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (error.name == name or name.startswith(error.name + ".")):
            missing = name.replace(".", "/") + ".py"
            raise ModuleNotFoundError("the code has no file %s" % missing, name=error.name) from None
        raise
    return sys.modules[name]


def reseed(entropy):
    """Instances of one snapshot would otherwise draw the same numbers. os.urandom and what is built on it always differ."""
    random = sys.modules.get("random")
    if random is not None:
        random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    # Seeds OpenSSL's generator of the process anew, from the system too; those of its threads follow it.
    ssl = sys.modules.get("_ssl")
    if ssl is not None:
        ssl.RAND_add(entropy + os.urandom(32), 64.0)
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile._name_sequence = None
