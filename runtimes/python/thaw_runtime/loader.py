"""Finds the handler and how it wants to be called."""

import os
import sys

COROUTINE, ASYNC_GENERATOR, VARIABLE_ARGUMENTS = 0x80, 0x200, 0x04


class HandlerNotFound(Exception):
    pass


class HandlerInvalid(Exception):
    pass


class Handler:
    __slots__ = ("function", "arguments", "is_async")

    def __init__(self, function):
        self.function = function
        self.arguments, self.is_async = _shape(function)


def load(name, code_dir, runtime_dir):
    """The handler `file.function`; the file's folders are parted by `/` or `.`."""
    sys.path[0:1] = [code_dir, os.path.join(code_dir, ".thaw", "python")]
    # Last, for `import thaw`: what the function brings itself has precedence.
    sys.path.append(runtime_dir)
    sys.path_importer_cache.clear()
    os.chdir(code_dir)
    file, _, attribute = name.rpartition(".")
    module_name = file.replace("/", ".").lstrip(".")
    if not module_name or not attribute:
        raise HandlerNotFound("the handler %r is not of the form file.function" % name)
    shown = module_name.replace(".", "/") + ".py"
    try:
        __import__(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise HandlerNotFound("there is no file %s in the code folder" % shown) from None
        raise
    function = getattr(sys.modules[module_name], attribute, None)
    if function is None:
        raise HandlerNotFound("%s has no function %s" % (shown, attribute))
    if not callable(function):
        raise HandlerInvalid("%s of %s is not a function but a value of type %s" % (attribute, shown, type(function).__name__))
    return Handler(function)


def _shape(function):
    """(how many of event and context it takes, whether it is async). Without `inspect`, which loads slowly."""
    innermost = function
    while hasattr(innermost, "__wrapped__"):
        innermost = innermost.__wrapped__
    code, bound = _code(innermost)
    if code is None:
        return _count_slowly(innermost), False
    outer_code, _ = _code(function)
    flags = code.co_flags | (outer_code.co_flags if outer_code else 0)
    is_async = bool(flags & (COROUTINE | ASYNC_GENERATOR))
    if code.co_flags & VARIABLE_ARGUMENTS:
        return 2, is_async
    return max(0, min(2, code.co_argcount - bound)), is_async


def _code(function):
    """(code object or None, 1 if its first argument is bound already)."""
    code = getattr(function, "__code__", None)
    if code is not None:
        return code, 0 if getattr(function, "__self__", None) is None else 1
    if isinstance(function, type):
        return None, 0
    call = getattr(type(function), "__call__", None)
    return getattr(call, "__code__", None), 1


def _count_slowly(function):
    try:
        from inspect import signature

        parameters = signature(function).parameters.values()
    except (ImportError, TypeError, ValueError):
        return 2
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return 2
    return min(2, sum(parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters))
