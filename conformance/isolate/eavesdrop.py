"""An outsider who listens to what vLLM publishes over ZeroMQ.

Standard input is one line of JSON: targets (HOST:PORT), needles (hexadecimal).
First he finds which targets greet like ZeroMQ (ZMTP 3.1), then he subscribes to
all that publish. A line of JSON for each thing that happens; he ends with his
standard input.
"""

import json
import socket
import sys
import threading

import zmq
import zmq.utils.monitor as monitor

WAIT = 1.5


def say(**what):
    print(json.dumps(what), flush=True)


def greets(target):
    host, port = target.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), WAIT) as s:
            s.settimeout(WAIT)
            first = s.recv(10)
            return len(first) == 10 and first[0] == 0xFF and first[9] == 0x7F
    except OSError:
        return False


ask = json.loads(sys.stdin.readline())
needles = [bytes.fromhex(n) for n in ask["needles"]]
found = []
threads = [threading.Thread(target=lambda t=t: greets(t) and found.append(t)) for t in ask["targets"]]
for t in threads:
    t.start()
for t in threads:
    t.join()
say(event="greeted", targets=sorted(found))

context = zmq.Context()
poller = zmq.Poller()
poller.register(sys.stdin, zmq.POLLIN)
of, monitors = {}, {}
for target in found:
    s = context.socket(zmq.SUB)
    s.setsockopt(zmq.LINGER, 0)
    m = s.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    s.setsockopt(zmq.SUBSCRIBE, b"")
    s.connect("tcp://" + target)
    of[s], monitors[m] = target, target
    poller.register(s, zmq.POLLIN)
    poller.register(m, zmq.POLLIN)
say(event="subscribed")
while True:
    for s, _ in poller.poll():
        if s in monitors:
            monitor.recv_monitor_message(s)
            say(event="published", target=monitors[s])
        elif s in of:
            message = b"".join(s.recv_multipart())
            say(event="message", target=of[s], bytes=len(message), marked=any(n in message for n in needles))
        else:
            sys.exit()
