"""A training continues where Weights & Biases cannot be had, with its files kept for later."""

import contextlib
import http.server
import threading
import time

import pytest

from tests.conftest import SMALL_CLIPS, cosmos_hpc
from tests.ports import free_ports

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef" * 2 + "01234567"
TRAINING = ("train.save_every=2", "train.validate_every=2")
TRAINING += ("train.micro_batch_size=2", "train.global_batch_size=4", *SMALL_CLIPS)


class Refusing(http.server.BaseHTTPRequestHandler):
    """Knows no key."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(401)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def refusing():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, scenes):
    """A folder with a run that is ready for training."""
    home = tmp_path_factory.mktemp("tracked")
    words = ("submit", "recipe=ar_tiny", f"data.input={scenes}", "--name", "x", *TRAINING)
    words += ("cluster.parallel=1", "generate.tasks=0")
    stages = ("--stages", "download,preprocess,finalize")
    outcome = cosmos_hpc(*words, "train.max_steps=2", *stages, cwd=home)
    assert outcome.code == 0, outcome.err
    return home, words


def test_unreachable_refusing_or_malformed_on_two_ranks_and_on_resume(prepared):
    """The same run three times, each further than before; on two ranks where one of them waits."""
    home, words = prepared
    with refusing() as server:
        nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
        # What wandb login leaves; the variable is not needed then.
        login = home / "netrc"
        login.write_text(f"machine 127.0.0.1 login user password {KEY}\n")
        login.chmod(0o600)
        of_login, of_variable = {"NETRC": str(login)}, {"WANDB_API_KEY": KEY}
        ways = (
            (nobody, of_login, 2),
            (server, of_variable, 1),
            (server, {"WANDB_API_KEY": "short"}, 1),
        )
        for number, (url, key, ranks) in enumerate(ways, 1):
            began = time.monotonic()
            outcome = cosmos_hpc(
                *words,
                f"train.max_steps={2 * number}",
                f"train.gpus={ranks}",
                cwd=home,
                env={**key, "WANDB_BASE_URL": url},
                timeout=300,
            )
            assert outcome.code == 0, outcome.err
            assert f"step {2 * number}/{2 * number}" in outcome.err
            log = cosmos_hpc("logs", "x", "train", "--raw", cwd=home).out
            assert log.count("Weights & Biases does not take this run") == 1, log[-3000:]
            assert key.get("WANDB_API_KEY", KEY) not in log
            # A minute and a half is what it takes by default to give up.
            assert time.monotonic() - began < 150
    kept = list((home / "runs" / "x" / "train" / "wandb").glob("offline-run-*"))
    assert len(kept) == 3
