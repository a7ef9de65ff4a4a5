"""MQTT.js in a browser: a page in headless Chromium publishes and subscribes over ``ws://`` and ``wss://``."""

import base64
import hashlib
import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tidings.broker import BrokerThread, Config

from .test_mqttjs import HERE
from .test_secure import certify

BROWSER_TIMEOUT_S = 60
# No sandbox: containers and root have none. The rest keeps it from talking to anybody but this machine.
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Site:
    """A web server on this machine with the page, MQTT.js, and a place where the page says what happened."""

    def __init__(self) -> None:
        said: queue.Queue[dict[str, Any]] = queue.Queue()
        files = {
            "/page.html": ("text/html", HERE / "page.html"),
            "/mqtt.min.js": ("text/javascript", HERE / "node_modules" / "mqtt" / "dist" / "mqtt.min.js"),
        }

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kind, path = files.get(self.path.partition("?")[0], ("", Path()))
                self.send_response(200 if kind else 404)
                self.send_header("Content-Type", kind or "text/plain")
                self.end_headers()
                if kind:
                    self.wfile.write(path.read_bytes())

            def do_POST(self) -> None:
                said.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.said = said
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.origin = f"http://localhost:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    if not (HERE / "node_modules" / "mqtt" / "dist").is_dir():
        pytest.skip("needs MQTT.js: npm ci --prefix tests/e2e/mqttjs")
    running = Site()
    yield running
    running.close()


def key_hash(certfile: Path) -> str:
    """By which Chromium is told to trust this one certificate."""
    key = x509.load_pem_x509_certificate(certfile.read_bytes()).public_key()
    return base64.b64encode(
        hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    ).decode()


@pytest.mark.slow
def test_a_page_in_chromium_sends_and_receives_and_is_held_to_the_rules(site: Site, tmp_path: Path) -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium (Debian: chromium)")
    certify(tmp_path, "ca")
    certify(tmp_path, "server", "localhost")
    files = {"certfile": str(tmp_path / "server.crt"), "keyfile": str(tmp_path / "server.key")}
    config = Config.model_validate(
        {
            "sys_interval_s": 0,
            "listeners": [
                {"url": "ws://localhost:0/mqtt", "origins": [site.origin]},
                {"url": "wss://localhost:0/mqtt", "origins": [site.origin], **files},
                {"url": "ws://localhost:0/mqtt", "origins": ["https://example.org"]},
            ],
        }
    )
    log = tmp_path / "chromium.log"
    with BrokerThread(config) as broker, log.open("wb") as errors:
        ws, wss, foreign = broker.urls
        address = f"{site.origin}/page.html?{urlencode({'urls': f'{ws},{wss}', 'foreign': foreign})}"
        command = [
            program,
            *OPTIONS,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--ignore-certificate-errors-spki-list={key_hash(tmp_path / 'server.crt')}",
            "--remote-debugging-port=0",  # or it would end once the page has loaded
            address,
        ]
        browser = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            said = site.said.get(timeout=BROWSER_TIMEOUT_S)
        except queue.Empty:
            raise AssertionError(log.read_text()[-4000:]) from None
        finally:
            browser.terminate()
            browser.wait(BROWSER_TIMEOUT_S)
    assert said == {
        "ws 4": "ok",
        "ws 5": "ok",
        "wss 4": "ok",
        "wss 5": "ok",
        "text frame": 1003,
        "other sub-protocol": "refused",
        "other path": "refused",
        "other origin": "refused",
    }
