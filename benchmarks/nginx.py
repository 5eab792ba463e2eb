"""nginx on loopback, serving a folder: plainly under /fast/, and under /polite/ at most so many requests a second."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CONFIG = """
{user}
worker_processes 1;
daemon off;
pid {work}/nginx.pid;
error_log {work}/error.log warn;
events {{ worker_connections 512; }}
http {{
  client_body_temp_path {work}/t1; proxy_temp_path {work}/t2; fastcgi_temp_path {work}/t3;
  uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;
  types {{ image/jpeg jpg; }}
  default_type application/octet-stream;
  sendfile on; tcp_nodelay on; keepalive_requests 100000;
  log_format short '$status $uri';
  limit_req_zone $server_name zone=polite:1m rate={rate}r/s;
  limit_req_status 429;
  server {{
    listen 127.0.0.1:{port};
    server_name local;
    location /fast/ {{ alias {files}/; access_log off; }}
    location /polite/ {{
      alias {files}/; access_log {work}/polite.log short;
      limit_req zone=polite burst={burst} nodelay;
      error_page 429 = @later;
    }}
    location @later {{ add_header Retry-After 1 always; access_log {work}/polite.log short; return 429; }}
  }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """A running server.

    Attributes:
        port: on 127.0.0.1.
        log: one line a request under /polite/: status and path.
    """

    port: int
    log: Path

    def polite_answers(self) -> dict[int, int]:
        """Answers under /polite/ since it was last asked, by status."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.write_text("")
        counts: dict[int, int] = {}
        for line in lines:
            status = int(line.split()[0])
            counts[status] = counts.get(status, 0) + 1
        return counts


@contextmanager
def nginx(files: Path, work: Path, *, rate: int = 50, burst: int = 5) -> Iterator[Nginx]:
    """Serve `files`; ends the benchmark with a sentence where nginx is not installed.

    Args:
        files: the folder served.
        work: a folder for its own files.
        rate: requests a second under /polite/; beyond, 429 with Retry-After: 1.
        burst: requests that may come early.
    """
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        print("not run: it needs nginx (apt install nginx-light)")
        sys.exit(0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    work.mkdir(parents=True, exist_ok=True)
    config = work / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # its workers must be able to read the files
    config.write_text(_CONFIG.format(work=work, files=files, port=port, rate=rate, burst=burst, user=user))
    process = subprocess.Popen([binary, "-p", str(work), "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            raise RuntimeError(f"nginx did not start: {(work / 'error.log').read_text()}")
        yield Nginx(port, work / "polite.log")
    finally:
        process.terminate()
        process.wait()
