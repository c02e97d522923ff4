#!/usr/bin/env python3
"""A node for the load scenarios: the control API of a MediaMTX whose publishers are those of the running scenario.

Onair polls it, asks it for connections and kicks on it, as on a real node; the scenario tells it who came and went.

Invariants:
- Who comes to a path that somebody has takes it over, as with a real node; who was kicked is gone.
- `/load/` answers callers from this machine only.
- It ends when its standard input does, so that it never outlives the one who started it.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

BYTES_PER_SECOND = 250_000
TRACKS = [
    {"codec": "H264", "codecProps": {"width": 1280, "height": 720, "profile": "High", "level": "3.1"}},
    {"codec": "MPEG-4 Audio", "codecProps": {"sampleRate": 48000, "channelCount": 2}},
]
COLLECTIONS = {
    "rtmpConn": "rtmpconns",
    "srtConn": "srtconns",
    "rtspSession": "rtspsessions",
    "webRTCSession": "webrtcsessions",
}


def now_text():
    return datetime.now(timezone.utc).isoformat()


class Publishers:
    """Who is online. Every method may be called from any thread."""

    def __init__(self):
        self.lock = threading.Lock()
        self.by_id = {}
        self.by_path = {}
        self.started = now_text()

    def arrive(self, publishers):
        with self.lock:
            for publisher in publishers:
                self.by_id.pop(self.by_path.get(publisher["path"]), None)
                self.by_id[publisher["id"]] = {**publisher, "since": time.monotonic(), "since_text": now_text()}
                self.by_path[publisher["path"]] = publisher["id"]

    def depart(self, ids):
        """How many of them were there."""
        with self.lock:
            gone = [publisher for publisher in (self.by_id.pop(id, None) for id in ids) if publisher]
            for publisher in gone:
                if self.by_path.get(publisher["path"]) == publisher["id"]:
                    del self.by_path[publisher["path"]]
            return len(gone)

    def restart(self):
        with self.lock:
            self.by_id.clear()
            self.by_path.clear()
            self.started = now_text()

    def paths(self):
        with self.lock:
            return [path_item(self.by_id[id]) for _, id in sorted(self.by_path.items())]

    def path(self, name):
        with self.lock:
            publisher = self.by_id.get(self.by_path.get(name))
            return publisher and path_item(publisher)

    def connection(self, collection, id):
        with self.lock:
            publisher = self.by_id.get(id)
            return publisher if publisher and COLLECTIONS.get(publisher["type"]) == collection else None


def inbound_bytes(publisher):
    return int((time.monotonic() - publisher["since"]) * BYTES_PER_SECOND)


def path_item(publisher):
    return {
        "name": publisher["path"],
        "confName": "all_others",
        "ready": True,
        "readyTime": publisher["since_text"],
        "online": True,
        "onlineTime": publisher["since_text"],
        "source": {"type": publisher["type"], "id": publisher["id"]},
        "tracks": [track["codec"] for track in TRACKS],
        "tracks2": TRACKS,
        "inboundBytes": inbound_bytes(publisher),
        "outboundBytes": 0,
        "readers": [],
    }


def connection_item(publisher):
    return {
        "id": publisher["id"],
        "created": publisher["since_text"],
        "remoteAddr": "198.18.0.1:50000",
        "state": "publish",
        "path": publisher["path"],
        "inboundBytes": inbound_bytes(publisher),
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave in one piece: in two, the second would wait for the first one's acknowledgement.
    wbufsize = 1 << 16

    def log_message(self, *_):
        pass

    def answer(self, status, body=None):
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status, error):
        self.answer(status, {"status": "error", "error": error})

    def is_onair(self):
        """A real node would ask Onair whether the token is its own; here it is enough that there is one."""
        return self.headers.get("Authorization", "").startswith("Bearer onair1.")

    def do_GET(self):
        if not self.is_onair():
            return self.refuse(401, "authentication error")
        address = urlsplit(self.path)
        publishers = self.server.publishers
        if address.path == "/v3/info":
            return self.answer(200, {"version": "v1.20.1", "started": publishers.started})
        if address.path == "/v3/paths/list":
            return self.list_paths(parse_qs(address.query))
        if found := re.fullmatch(r"/v3/paths/get/(.+)", address.path):
            item = publishers.path(found[1])
            return self.answer(200, item) if item else self.refuse(404, "path not found")
        if found := re.fullmatch(r"/v3/(\w+)/get/([0-9a-f-]+)", address.path):
            publisher = publishers.connection(found[1], found[2])
            return self.answer(200, connection_item(publisher)) if publisher else self.refuse(404, "connection not found")
        return self.refuse(404, "not found")

    def list_paths(self, query):
        items_per_page, page = (int(query.get(name, [default])[0]) for name, default in (("itemsPerPage", 100), ("page", 0)))
        items = self.server.publishers.paths()
        some = items[page * items_per_page : (page + 1) * items_per_page]
        self.answer(200, {"itemCount": len(items), "pageCount": -(-len(items) // items_per_page), "items": some})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/load/"):
            if self.client_address[0] != self.connection.getsockname()[0]:
                return self.refuse(403, "only from this machine")
            return self.tell(self.path, json.loads(body))
        if not self.is_onair():
            return self.refuse(401, "authentication error")
        found = re.fullmatch(r"/v3/(\w+)/kick/([0-9a-f-]+)", self.path)
        if found and self.server.publishers.connection(found[1], found[2]):
            self.server.publishers.depart([found[2]])
            return self.answer(200, {"status": "ok"})
        return self.refuse(404, "connection not found")

    def tell(self, path, body):
        publishers = self.server.publishers
        if path == "/load/arrivals":
            publishers.arrive(body)
        elif path == "/load/departures":
            publishers.depart(body)
        elif path == "/load/restart":
            publishers.restart()
        else:
            return self.refuse(404, "not found")
        return self.answer(204)


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def __init__(self, address):
        super().__init__(address, Handler)
        self.publishers = Publishers()

    def handle_error(self, request, client_address):
        # Onair hangs up where it has no use for the answer any more, as when the node is deleted.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def main():
    # Ctrl-C is for the scenario, which clears up and still needs its node for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    host, port = (sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:0").rsplit(":", 1)
    server = Server((host, int(port)))
    print(f"http://{host}:{server.server_port}", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


main()
