"""A webhook receiver on loopback: a real HTTP server that answers as a test tells it to."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue


class Receiver:
    """Remembers what came; `answers` are used up in turn, the last one stays.

    An answer is a status, or a function that gets the handler and does what it likes.
    """

    def __init__(self, tls=None):
        self.answers = [204]
        self.got = Queue()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answers = receiver.answers
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                receiver.got.put((self.path, dict(self.headers), body))
                if callable(answer):
                    answer(self)
                    return
                self.send_response(answer)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self):
                receiver.got.put((self.path, dict(self.headers), None))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/hook?k=v"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def next(self, seconds=30):
        """(path, headers in lower case, body) of the next request."""
        path, headers, body = self.got.get(timeout=seconds)
        return path, {name.lower(): value for name, value in headers.items()}, body

    def close(self):
        """Listen no more: connections are refused. Harmless when repeated."""
        if not self.thread.is_alive():
            return
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
