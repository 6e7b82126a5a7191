"""Bytes to events, answers to bytes, exceptions to failures: the tables of docs/runtime-protocol.md."""

import os
import sys

PIECE_BYTES = 256 * 1024

JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain; charset=utf-8"
BYTES_TYPE = "application/octet-stream"
LINES_TYPE = "application/x-ndjson"

# The worker refuses longer ones, counted in UTF-16 units; half as many code points always fit.
_MAX_TYPE = 128
_MAX_MESSAGE = 32_768
_MAX_STACK = 131_072

_RUNTIME_DIR = os.path.dirname(os.path.abspath(__file__)) + "/"


def _reject_constant(name):
    raise ValueError(name + " is not JSON")


def _reject_object(value):
    raise TypeError("Object of type " + type(value).__name__ + " is not JSON serializable")


# The package json imports re and enum, more than half of what this runtime needs to start; its C half needs neither.
try:
    from _json import encode_basestring as _quote
    from _json import make_encoder as _make_encoder
    from _json import make_scanner as _make_scanner

    class _Scanning:
        strict = True
        object_hook = None
        object_pairs_hook = None
        array_hook = None
        parse_float = float
        parse_int = int
        parse_constant = staticmethod(_reject_constant)
        memo = {}

    _scan = _make_scanner(_Scanning)

    def _to_json(value):
        return "".join(_make_encoder({}, _reject_object, _quote, None, ":", ",", False, False, False)(value, 0))

    _to_json([{"a": 1}])
except (ImportError, AttributeError, TypeError):
    import json

    _scan = json.JSONDecoder(parse_constant=_reject_constant).scan_once
    _to_json = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode


def parse_json(data):
    """The value that `data` (bytes) spells. ValueError for what strict JSON is not, RecursionError for too deep a nest."""
    text = str(data, "utf-8").strip(" \t\n\r")
    try:
        value, end = _scan(text, 0)
        if end == len(text):
            return value
    except (StopIteration, SystemError):
        # Up to Python 3.11 the C half has no words (a SystemError) for some mistakes while the package is not imported.
        pass
    from json import JSONDecoder

    return JSONDecoder(parse_constant=_reject_constant).decode(text)


def encode_json(value):
    # A lone surrogate has no UTF-8; what backslashreplace writes for it is exactly JSON's escape.
    return _to_json(value).encode("utf-8", "backslashreplace")


def event_of(meta, body):
    """The event of an invocation. ValueError and RecursionError: the payload is not what its content type says."""
    value = _payload_of(meta["content_type"], body)
    http = meta.get("http")
    if meta.get("trigger") != "http" or http is None:
        return value
    return {
        "method": http["method"],
        "path": http["path"],
        "query": _query_of(http["query"]),
        "headers": http["headers"],
        "body": value,
    }


def _payload_of(content_type, body):
    if not body:
        return None
    if content_type != JSON_TYPE:
        content_type = content_type.partition(";")[0].strip().lower()
        if content_type == "" or content_type == "application/x-www-form-urlencoded":
            try:
                return parse_json(body)
            except ValueError:
                return str(body, "utf-8", "replace")
        if content_type.startswith("text/"):
            return str(body, "utf-8", "replace")
        if content_type != JSON_TYPE and not content_type.endswith("+json"):
            return bytes(body)
    return parse_json(body)


def _query_of(query):
    result = {}
    for pair in query.lstrip("?").split("&"):
        if pair:
            name, _, value = pair.partition("=")
            result[_unquote(name)] = _unquote(value)
    return result


def _unquote(text):
    text = text.replace("+", " ")
    if "%" not in text:
        return text
    first, *rest = text.encode().split(b"%")
    parts = [first]
    for part in rest:
        try:
            # bytes.fromhex would skip blanks: "% 1" is no escape.
            if b" " in part[:2] or len(part) < 2:
                raise ValueError
            parts.append(bytes.fromhex(part[:2].decode("ascii")) + part[2:])
        except ValueError:
            parts.append(b"%" + part)
    return b"".join(parts).decode("utf-8", "replace")


def encode_answer(value):
    """(content type, bytes) of an answer that is no stream."""
    if isinstance(value, str):
        return TEXT_TYPE, value.encode()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return BYTES_TYPE, bytes(value)
    return JSON_TYPE, encode_json(value)


def encode_piece(content_type, piece):
    """The bytes of one piece of a stream whose first piece decided on `content_type`."""
    if content_type == LINES_TYPE:
        return encode_json(piece) + b"\n"
    if isinstance(piece, str):
        return piece.encode()
    if isinstance(piece, (bytes, bytearray, memoryview)):
        return bytes(piece)
    raise TypeError("a stream that began with text or bytes yielded " + type(piece).__name__)


def piece_type(piece):
    if isinstance(piece, str):
        return TEXT_TYPE
    if isinstance(piece, (bytes, bytearray, memoryview)):
        return BYTES_TYPE
    return LINES_TYPE


def http_answer(value):
    """(head, body) of what an HTTP handler returned: head is the result's meta as far as the answer decides it.

    ValueError or TypeError for a status or header that HTTP cannot carry.
    """
    if not isinstance(value, dict):
        return {}, value
    status = value.get("status", value.get("statusCode"))
    if not isinstance(status, int) or isinstance(status, bool):
        return {}, value
    if not 100 <= status <= 599:
        raise ValueError("%d is not an HTTP status" % status)
    head = {"status": int(status)}
    headers = {}
    for name, content in (value.get("headers") or {}).items():
        if not isinstance(name, str) or not 0 < len(name) <= 256:
            raise ValueError("%.80r is not the name of a header" % (name,))
        if isinstance(content, (list, tuple)):
            content = [_header_value(name, item) for item in content[:65]]
            if len(content) > 64:
                raise ValueError("the header %s has more than 64 values" % name)
        else:
            content = _header_value(name, content)
        if name.lower() == "content-type":
            head["content_type"] = _content_type(content if isinstance(content, str) else "".join(content[:1]))
        else:
            headers[name] = content
    if headers:
        head["headers"] = headers
    if "body" not in value:
        head.setdefault("content_type", TEXT_TYPE)
        return head, b""
    body = value["body"]
    if value.get("isBase64Encoded") is True and isinstance(body, (str, bytes)):
        from binascii import a2b_base64

        body = a2b_base64(body)
    return head, body


def _header_value(name, content):
    if isinstance(content, bool) or not isinstance(content, (str, int, float)):
        raise TypeError("the header %s is %s, not text" % (name, type(content).__name__))
    content = str(content)
    if len(content) > 4096 and len(content.encode("utf-16-le", "surrogatepass")) > 2 * 8192:
        raise ValueError("the header %s is longer than 8192 characters" % name)
    if "\r" in content or "\n" in content or "\0" in content:
        raise ValueError("the header %s has a line break or a zero byte in it" % name)
    return content


def _content_type(content):
    if len(content) > 256 or not content.isascii() or not content.isprintable():
        raise ValueError("%.80r is not a content type" % content)
    return content


def failure_of(error):
    """{type, message, stack} of an exception, with the frames of the runtime left out."""
    kind = type(error).__name__
    try:
        message = str(error)
    except BaseException:
        message = "<its __str__ failed>"
    failure = {"type": kind[:_MAX_TYPE], "message": message[:_MAX_MESSAGE]}
    try:
        stack = _stack_of(error)
    except BaseException:
        return failure
    if len(stack) > _MAX_STACK:
        stack = stack[: _MAX_STACK // 2] + "\n...\n" + stack[8 - _MAX_STACK // 2 :]
    failure["stack"] = stack
    return failure


def _stack_of(error):
    import traceback

    summary = traceback.TracebackException(type(error), error, error.__traceback__)
    # By identity: summaries compare by content, which fails in Python 3.8 when one has a cause and the other none.
    seen = set()
    waiting = [summary]
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        part.stack[:] = [frame for frame in part.stack if _is_user_code(frame.filename)]
        waiting += [part.__cause__, part.__context__]
        waiting += getattr(part, "exceptions", None) or []
    return "".join(summary.format())


def _is_user_code(filename):
    if filename.startswith(_RUNTIME_DIR):
        return filename == _RUNTIME_DIR + "thaw.py"
    return not filename.startswith("<frozen importlib")


def positional_arguments(function):
    """How many of (event, context) a handler takes. TypeError when it needs more than both."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    bound = 0
    target = function
    if not hasattr(target, "__code__") and not isinstance(target, type) and hasattr(type(target), "__call__"):
        # A method has the code of its function; another callable object that of its class's __call__.
        if hasattr(target, "__func__"):
            target = target.__func__
        else:
            target = type(target).__call__
        bound = 1
    elif hasattr(target, "__func__"):
        target = target.__func__
        bound = 1
    code = getattr(target, "__code__", None)
    if code is None:
        return _signature_arguments(function)
    most = code.co_argcount - bound
    least = most - len(target.__defaults__ or ())
    if least > 2:
        raise TypeError("the handler needs %d arguments; it is given (event, context)" % least)
    return 2 if code.co_flags & 0x04 else min(most, 2)


def _signature_arguments(function):
    import inspect

    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 2
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return 2
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return min(2, sum(parameter.kind in positional for parameter in parameters))


def runtime_version():
    return "%d.%d.%d" % sys.version_info[:3]
