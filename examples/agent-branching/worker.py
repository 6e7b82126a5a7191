"""
A process that takes its time to get where it is: it lays out a few hundred places, builds a first round trip through
them, and improves it half-way. From there on somebody else decides how it goes on.

It answers on 127.0.0.1:7000: GET / tells its state, POST /explore {"plan", "seed", "steps"} goes on from where it is.
"""

import http.server
import json
import math
import os
import random
import time

PLACES = 300
WORKSPACE = "/root/workspace"


def distance(a, b):
    return math.hypot(a[0] - b[0], a[1] - b[1])


def length(tour):
    return sum(distance(places[tour[i - 1]], places[tour[i]]) for i in range(len(tour)))


def two_opt(tour, rng, steps, segment):
    """Turns stretches of the tour around where that makes it shorter."""
    size = len(tour)
    for _ in range(steps):
        i = rng.randrange(size - 2)
        j = min(size - 1, i + 2 + rng.randrange(segment))
        a, b, c, d = tour[i - 1], tour[i], tour[j - 1], tour[j]
        before = distance(places[a], places[b]) + distance(places[c], places[d])
        after = distance(places[a], places[c]) + distance(places[b], places[d])
        if after < before:
            tour[i:j] = reversed(tour[i:j])
    return tour


def shake(tour, rng, steps):
    """Puts single places elsewhere where that makes the tour shorter."""
    for _ in range(steps):
        i = rng.randrange(len(tour))
        place = tour.pop(i)
        old = distance(places[tour[i - 1]], places[place]) + distance(places[place], places[tour[i % len(tour)]])
        old -= distance(places[tour[i - 1]], places[tour[i % len(tour)]])
        j = rng.randrange(len(tour))
        new = distance(places[tour[j - 1]], places[place]) + distance(places[place], places[tour[j]])
        new -= distance(places[tour[j - 1]], places[tour[j]])
        tour.insert(j if new < old else i, place)
    return tour


PLANS = {
    "short turns": lambda tour, rng, steps: two_opt(tour, rng, steps, 30),
    "long turns": lambda tour, rng, steps: two_opt(tour, rng, steps, 280),
    "moves": lambda tour, rng, steps: shake(tour, rng, steps),
    "both": lambda tour, rng, steps: shake(two_opt(tour, rng, steps // 2, 150), rng, steps // 2),
}

# What every branch inherits, and none computes again.
os.makedirs(WORKSPACE, exist_ok=True)
with open(f"{WORKSPACE}/report.txt", "a") as report:
    report.write("loaded once\n")
rng = random.Random(7)
places = [(rng.random(), rng.random()) for _ in range(PLACES)]
tour = two_opt(list(range(PLACES)), rng, 60_000, 100)
started = {"pid": os.getpid(), "loaded_at": time.time(), "token": random.random(), "length": length(tour)}
# The report stays open, half written.
report = open(f"{WORKSPACE}/report.txt", "a", buffering=1)
report.write(f"half-way at {started['length']:.3f}\n")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({**started, "now": length(tour), "hostname": os.uname().nodename})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        PLANS[asked["plan"]](tour, random.Random(asked["seed"]), asked["steps"])
        report.write(f"{asked['plan']} ({asked['seed']}) got to {length(tour):.3f}\n")
        self.answer({"length": length(tour)})

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.HTTPServer(("127.0.0.1", 7000), Handler).serve_forever()
