"""SCRAM-SHA-256 between independent implementations: MQTT.js with Node's cryptography, and the broker."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tidings.broker import BrokerThread, Config
from tidings.broker.access.users import new_user, put_user

from .test_mqttjs import HERE, TIMEOUT_S


@pytest.mark.parametrize(("password", "said"), [("pencil ☂", "connected"), ("pen", "134")])
def test_mqttjs_logs_in_without_sending_its_password(tmp_path: Path, password: str, said: str) -> None:
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs Node.js (Debian: nodejs)")
    if not (HERE / "node_modules" / "mqtt").is_dir():
        pytest.skip("needs MQTT.js: npm ci --prefix tests/e2e/mqttjs")
    path = tmp_path / "passwords"
    put_user(path, new_user("alice", "pencil ☂", scram=True))
    with BrokerThread(Config(listeners=["tcp://127.0.0.1:0"], password_file=path)) as broker:
        command = [program, str(HERE / "scram.mjs"), str(broker.port), "alice", password]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.stdout, done.stderr) == (f"{said}\n", "")
