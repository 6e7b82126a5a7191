/**
 * A runtime for tests, which speaks the Lambda Runtime API by hand: an executable `bootstrap`. The event says what it does;
 * `INIT` in its environment what it does before it asks for one.
 */
export const bootstrap = `#!/usr/bin/env python3
import base64, http.client, json, os, sys, time

address = os.environ["AWS_LAMBDA_RUNTIME_API"]
prefix = "/2018-06-01/runtime/"

def send(method, path, body=None, headers={}, encode_chunked=False):
    connection = http.client.HTTPConnection(address)
    connection.request(method, path if path.startswith("/") else prefix + path, body, headers, encode_chunked=encode_chunked)
    answer = connection.getresponse()
    return answer, answer.read()

def status(method, path, body=None, headers={}):
    answer, text = send(method, path, body, headers)
    return [answer.status, json.loads(text).get("errorType")]

def stream(id, pieces, trailers=b"", content_type="text/plain", end=True):
    connection = http.client.HTTPConnection(address)
    connection.putrequest("POST", prefix + "invocation/" + id + "/response")
    connection.putheader("Lambda-Runtime-Function-Response-Mode", "streaming")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.putheader("Content-Type", content_type)
    connection.putheader("Trailer", "Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body")
    connection.endheaders()
    for piece in pieces:
        if piece is None:
            time.sleep(600)
            continue
        data = piece if isinstance(piece, bytes) else piece.encode()
        connection.send(b"%x\\r\\n%b\\r\\n" % (len(data), data))
    if not end:
        connection.close()
        return
    connection.send(b"0\\r\\n" + trailers + b"\\r\\n")
    return connection.getresponse().status

def respond(id, value, headers={"Content-Type": "application/json"}):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return status("POST", "invocation/" + id + "/response", body, headers)

init = os.environ.get("INIT")
print("starting")
if init == "error":
    print(status("POST", "init/error", json.dumps({"errorMessage": "no database", "errorType": "InitError", "stackTrace": ["a", "b"]})), flush=True)
    sys.exit(1)
if init == "exit":
    print("giving up", file=sys.stderr)
    sys.exit(9)
if init == "sleep":
    time.sleep(600)

counter = 0
what = None
last = None
while True:
    answer, body = send("GET", "invocation/next")
    # That a response was broken off may not have been noticed yet.
    if answer.status == 403 and what == "stream_cut":
        continue
    id = answer.headers["Lambda-Runtime-Aws-Request-Id"]
    event = json.loads(body) if "json" in answer.headers["Content-Type"] and body[:1] in b'{["0123456789tfn' else body.decode("latin1")
    counter += 1
    what = event.get("do") if isinstance(event, dict) else None
    if what == "echo":
        respond(id, event)
    elif what == "headers":
        respond(id, {"headers": dict(answer.headers), "body": body.decode()})
    elif what == "environment":
        respond(id, {name: value for name, value in os.environ.items()})
    elif what == "count":
        respond(id, counter)
    elif what == "print":
        print("said", event["text"])
        print("warned", event["text"], file=sys.stderr)
        respond(id, None)
    elif what == "error":
        sent = status("POST", "invocation/" + id + "/error", json.dumps(event["report"]), {"Lambda-Runtime-Function-Error-Type": "Header.Type"})
        last = sent
    elif what == "misuse":
        seen = {
            "next": status("GET", "invocation/next"),
            "unknown": status("POST", "invocation/inv-other/response", "1"),
            "unknown_error": status("POST", "invocation/inv-other/error", "{}"),
            "init": status("POST", "init/error", "{}"),
            "path": status("GET", "elsewhere"),
            "root": status("GET", "/"),
            "method": status("POST", "invocation/next"),
            "origin": status("GET", "invocation/next", None, {"Origin": "http://evil.example"}),
            "host": status("GET", "invocation/next", None, {"Host": "evil.example"}),
        }
        first = respond(id, seen)
        last = [first, respond(id, 2)]
    elif what == "last":
        respond(id, last)
    elif what == "large":
        last = respond(id, b"x" * event["bytes"], {"Content-Type": "text/plain"})
    elif what == "stream":
        last = stream(id, event["pieces"])
    elif what == "stream_error":
        report = base64.b64encode(json.dumps({"errorMessage": "too late", "errorType": "Late"}).encode())
        last = stream(id, event["pieces"], b"Lambda-Runtime-Function-Error-Type: Late\\r\\nLambda-Runtime-Function-Error-Body: " + report + b"\\r\\n")
    elif what == "stream_cut":
        stream(id, event["pieces"], end=False)
    elif what == "hang":
        time.sleep(600)
    elif what == "exit":
        os._exit(5)
    elif what == "answer_and_exit":
        respond(id, counter)
        os._exit(6)
    elif isinstance(event, dict) and "rawPath" in event:
        if event["rawPath"] == "/event":
            respond(id, event)
        elif event["rawPath"] == "/teapot":
            respond(id, {"statusCode": 418, "headers": {"content-type": "text/tea", "x-mine": "yes"}, "cookies": ["a=1", "b=2"], "body": base64.b64encode(b"\\xff\\x00tea").decode(), "isBase64Encoded": True})
        elif event["rawPath"] == "/bad":
            respond(id, {"statusCode": 9999})
        elif event["rawPath"] == "/stream":
            head = json.dumps({"statusCode": 201, "headers": {"content-type": "text/html", "x-mine": "1"}, "cookies": ["a=1", "b=2"]})
            stream(id, [head + "\\0" * 8 + "<p>", "hello"], content_type="application/vnd.awslambda.http-integration-response")
        else:
            respond(id, "plain")
    else:
        respond(id, {"event": event})
`
