"""People are told of what matters, nobody waits for that, and the webhook's URL is seen by nobody."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import yaml

from pharos import channels, notify
from pharos import summary as summary_module
from pharos import sweep as sweep_module
from pharos.backends import finish_sweep
from pharos.channels import Message, NotSentError, Webhook
from pharos.config import make_plan, reopen_plan
from pharos.console import Console
from pharos.errors import InputError
from pharos.notify import NotifyConfig, open_channels
from pharos.trial import Report

SECRET = "/services/T0SECRET/B0SECRET/x0SECRET"


class Hook(ThreadingHTTPServer):
    """A webhook on this machine.

    Attributes:
        url: Its own.
        statuses: What it answers to the next messages; 200 to all others.
        seconds: How long it thinks first.
        texts: Of the messages that it has taken.
        tries: How often it was asked.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}{SECRET}"
        self.statuses, self.seconds, self.texts, self.tries = [], 0.0, [], 0

    def handle_error(self, request, client_address):
        pass  # the client has left


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        hook = self.server
        hook.tries += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(hook.seconds)
        status = hook.statuses.pop(0) if hook.statuses else 200
        if status == 200:
            assert self.headers["Content-Type"].startswith("application/json")
            assert self.path == SECRET
            assert set(body) == {"text"}
            hook.texts.append(body["text"])
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hook(monkeypatch):
    monkeypatch.setattr(channels, "_PAUSES", (0.05, 0.05))
    with Hook() as hook:
        thread = threading.Thread(target=hook.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        monkeypatch.setenv("PHAROS_WEBHOOK", hook.url)
        yield hook
        hook.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_git(monkeypatch):
    monkeypatch.setattr(summary_module, "_revision", lambda: "abc")


class Quiet(Console):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def note(self, text):
        self.lines.append(text)


def overrides(toy, *settings):
    common = ["backend=local", "tracking=none", f"storage.url={toy.url}", "sampler=random", "scale=tiny", "trials=3"]
    return [*common, *settings]


def run(toy, *settings):
    """Runs a sweep; what its console heard, and its summary."""
    console = Quiet()
    sweep = sweep_module.start("toy", overrides(toy, *settings), console)
    return console.lines, finish_sweep(sweep)


def wait_until(happened, seconds=20):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


# What is sent


def test_the_end_of_a_sweep_says_what_came_of_it(toy, hook):
    lines, summary = run(toy, "notify.webhook=true", "scheduler=none")
    (text,) = hook.texts
    title, why, best, counts, more = text.splitlines()
    assert title == f"*sweep {summary['sweep']} (toy) has ended*"
    assert why == "all 3 trials have ended"
    metrics = [summary[which]["values"]["error"] for which in ("best", "paper_values")]
    assert best.startswith(f"best error={metrics[0]:.4g} ({summary['best']['trial']})")
    if summary["best"]["trial"] == summary["paper_values"]["trial"]:
        assert best.endswith(", which are the paper's values")
    else:
        assert best.endswith(f"; paper's values error={metrics[1]:.4g} ({summary['paper_values']['trial']})")
    assert counts.startswith("3 complete; ")
    assert counts.endswith(" CPU hours")
    assert more.startswith(f"more: python platform/report.py {toy.url}/{summary['sweep']} (on ")
    assert not [line for line in lines if "not sent" in line]


def test_nothing_is_sent_unless_it_is_asked_for(toy, hook):
    run(toy)
    run(toy, "notify.webhook=true", "notify.on=[breaker]")
    assert hook.tries == 0


def test_the_breaker_is_told_when_it_trips_and_once(toy, hook):
    def fail(run, epoch, config):
        raise RuntimeError("broken <!channel> & head")

    toy.in_epoch = fail
    run(toy, "notify.webhook=true", "breaker=2", "trials=6")
    first, second = hook.texts
    assert first.splitlines()[0].endswith("(toy): breaker*")
    # Slack takes three characters for its own; a trial's words ring nobody up.
    assert "failed at the same place: RuntimeError: broken &lt;!channel&gt; &amp; head" in first
    assert "no trial is complete" in first
    assert "paper's values" in first
    assert "2 failed" in first
    assert second.splitlines()[1] == "different configurations failed at the same place"


def test_a_sweep_that_was_stopped_says_so_and_one_that_goes_on_tells_of_its_end_again(toy, hook):
    console = Quiet()
    sweep = sweep_module.start("toy", overrides(toy, "notify.webhook=true"), console)
    toy.in_epoch = lambda run, epoch, config: sweep.interrupt()
    finish_sweep(sweep)
    assert "stopped before its last trial; --resume goes on" in hook.texts[0]
    assert "1 interrupted" in hook.texts[0]
    toy.in_epoch = lambda run, epoch, config: None
    again = sweep_module.reopen(sweep.name, [f"storage.url={toy.url}", "notify.stall_minutes=5"], console)
    assert again.settings.notify == NotifyConfig(webhook=True, stall_minutes=5.0)
    finish_sweep(again)
    assert "all 3 trials have ended" in hook.texts[1]
    more = sweep_module.reopen(
        sweep.name, [f"storage.url={toy.url}", "trials=+1", "notify.webhook=false"], console, extend=True
    )
    finish_sweep(more)
    assert len(hook.texts) == 2


def test_a_sweep_that_ends_by_an_error_says_which(toy, hook):
    console = Quiet()
    sweep = sweep_module.start("toy", overrides(toy, "notify.webhook=true"), console)

    def fail(number, ending):
        raise OSError(28, "No space left on device")

    sweep.on_end = fail
    with pytest.raises(OSError, match="No space"):
        finish_sweep(sweep)
    assert "No space left on device" in hook.texts[0]


def test_a_stall_is_told_once_and_once_more_when_it_is_over(toy, hook, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(notify, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def hang(run, epoch, config):
        if len(toy.started) == 2 and epoch.index == 1:
            now[0] += 59.0
            time.sleep(0.2)  # it looks every 15 ms
            assert not hook.tries
            now[0] += 1.0
            wait_until(lambda: hook.texts)
            now[0] += 120.0
            time.sleep(0.2)

    monkeypatch.setattr(notify, "_LOOK_SECONDS", 0.015)
    toy.in_epoch = hang
    run(toy, "notify.webhook=true", "notify.on=[stall]", "notify.stall_minutes=1", "scheduler=none")
    still, on = hook.texts
    assert still.splitlines()[0].endswith("(toy) stands still*")
    assert still.splitlines()[1] == "no report and no ending for 1m00s; running: 00001"
    assert "1/3 trials" in still
    assert on.splitlines()[0].endswith("(toy) goes on*")
    assert "after 3m00s; 1/3 trials" in on


def test_a_stall_that_nobody_wants_to_hear_of_is_not_watched_for(toy, hook):
    run(toy, "notify.webhook=true", "notify.on=[end]")
    assert not [thread for thread in threading.enumerate() if thread.name == "notify-stall"]


def test_starts_alone_are_no_sign_of_life():
    notifier = notify.Notifier(NotifyConfig(), [], print)
    before = notifier._heard_at
    notifier.started(None)
    assert notifier._heard_at == before
    notifier.reported(None, Report(1, {}, 1.0))
    assert notifier._heard_at > before


# What goes wrong


def test_one_that_fails_at_first_is_asked_again(toy, hook):
    hook.statuses = [500, 503]
    lines, _ = run(toy, "notify.webhook=true")
    assert len(hook.texts) == 1
    assert hook.tries == 3
    assert not [line for line in lines if "not sent" in line]


def refused(lines):
    return [line for line in lines if "not sent" in line]


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (302, 1), (500, 3), (429, 3)])
def test_one_that_refuses_is_given_up_in_one_line_and_the_sweep_is_none_the_worse(toy, hook, status, tries):
    hook.statuses = [status] * 10
    lines, summary = run(toy, "notify.webhook=true")
    assert summary["best"]
    assert hook.tries == tries
    assert refused(lines) == [f"not sent to 127.0.0.1 (it answered {status}): sweep {summary['sweep']} (toy) has ended"]
    assert "SECRET" not in "".join(lines)


def test_one_that_is_down_is_given_up(toy, hook, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("PHAROS_WEBHOOK", f"http://127.0.0.1:{port}{SECRET}")
    lines, summary = run(toy, "notify.webhook=true")
    assert refused(lines) == [f"not sent to 127.0.0.1 (Connection refused): sweep {summary['sweep']} (toy) has ended"]


def test_a_slow_one_delays_no_trial_and_the_end_no_longer_than_said(toy, hook, monkeypatch):
    monkeypatch.setattr(notify, "_LAST_SECONDS", 0.3)
    hook.seconds = 3.0
    ended = []
    monkeypatch.setattr(Quiet, "closed", lambda console: ended.append(time.monotonic()))
    lines, summary = run(toy, "notify.webhook=true")
    waited = time.monotonic() - ended[0]
    assert 0.3 <= waited < 2.0
    assert refused(lines) == [f"not sent to 127.0.0.1 (no answer yet): sweep {summary['sweep']} (toy) has ended"]


def test_the_sweep_waits_for_a_message_only_when_all_is_written_and_the_study_is_free(toy, hook):
    console = Quiet()
    sweep = sweep_module.start("toy", overrides(toy, "notify.webhook=true"), console)
    hook.seconds = 1.0
    reopened = []

    def try_it():
        wait_until(lambda: hook.tries)
        assert sweep.storage.exists("summary.json")
        sweep_module.reopen(sweep.name, [f"storage.url={toy.url}", "notify.webhook=false"], Quiet()).close()
        reopened.append(len(hook.texts))

    other = threading.Thread(target=try_it, daemon=True)
    other.start()
    finish_sweep(sweep)
    other.join()
    assert reopened == [0]  # while the webhook was still thinking


def test_a_webhook_that_never_answers_is_left_after_a_while(hook, monkeypatch):
    monkeypatch.setattr(channels, "_TIMEOUT", 0.1)
    hook.seconds = 2.0
    with pytest.raises(NotSentError, match=r"no answer in 0\.1 s"):
        Webhook(hook.url).send(Message("title", "text"))


class Channel:
    """One that does as a test says."""

    name = "elsewhere"

    def __init__(self, act=lambda message: None):
        self.sent = []
        self._act = act

    def send(self, message):
        self._act(message)
        self.sent.append(message)


def test_a_channel_that_hangs_holds_up_no_other(monkeypatch):
    monkeypatch.setattr(notify, "_LAST_SECONDS", 0.2)
    hold = threading.Event()
    stuck, good, lines = Channel(lambda message: hold.wait(20)), Channel(), []
    notifier = notify.Notifier(NotifyConfig(), [stuck, good], lines.append)
    notifier._sweep = object()
    for title in ("one", "two"):
        notifier._tell("end", lambda sweep, title=title: Message(title, ""))
    wait_until(lambda: len(good.sent) == 2)
    monkeypatch.setattr(notifier, "_ended", lambda sweep: Message("three", ""))
    notifier.closed()
    assert [message.title for message in good.sent] == ["one", "two", "three"]
    assert lines == [f"not sent to elsewhere (no answer yet): {title}" for title in ("one", "two", "three")]
    hold.set()


def test_trials_that_end_after_the_breaker_are_no_news(monkeypatch):
    channel = Channel()
    notifier = notify.Notifier(NotifyConfig(), [channel], print)
    notifier._sweep = SimpleNamespace(search=SimpleNamespace(fault="Traceback"))
    monkeypatch.setattr(notifier, "_broken", lambda sweep: Message("breaker", ""))
    monkeypatch.setattr(notifier, "_ended", lambda sweep: Message("end", ""))
    notifier.ended(None)
    notifier.ended(None)
    notifier.closed()
    assert [message.title for message in channel.sent] == ["breaker", "end"]


def test_a_message_that_cannot_be_made_fails_nothing(caplog):
    channel = Channel()
    notifier = notify.Notifier(NotifyConfig(), [channel], print)
    notifier._sweep = object()  # which has nothing that a message is made of
    notifier.closed()
    assert channel.sent == []
    assert "the message about end" in caplog.text


# What may be asked for


@pytest.mark.parametrize(
    "setting",
    [
        f"notify.webhook=https://host{SECRET}",
        f"notify.webhook=host{SECRET}",
        f"notify=https://host{SECRET}",
        f"notify.url=https://host{SECRET}",
        f"notify.on=[https://host{SECRET}]",
        f"+notify.webhook='https://host{SECRET}'",
        f"webhook=https://host{SECRET}",
        f"PHAROS_WEBHOOK=https://host{SECRET}",
    ],
)
def test_a_url_among_the_settings_is_refused_and_not_shown(toy, setting):
    document = make_plan("toy", ["tracking=none"]).to_dict()
    for refuse in (lambda: make_plan("toy", [setting]), lambda: reopen_plan(document, [setting])):
        with pytest.raises(InputError) as raised:
            refuse()
        text = str(raised.value)
        assert "PHAROS_WEBHOOK" in text
        assert "\n" not in text
        assert "SECRET" not in text


def test_a_url_that_somebody_wrote_into_a_sweeps_file_is_refused_and_not_shown(toy):
    document = make_plan("toy", ["tracking=none"]).to_dict()
    document["settings"]["notify"]["webhook"] = f"https://host{SECRET}"
    with pytest.raises(InputError, match="PHAROS_WEBHOOK") as raised:
        reopen_plan(document, [])
    assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize(
    "url", [SECRET, f"ftp://host{SECRET}", f"https://{SECRET}", f"https://host{SECRET} x", f"https://host:x{SECRET}"]
)
def test_what_is_no_webhook_is_refused_and_not_shown(url):
    with pytest.raises(InputError, match="PHAROS_WEBHOOK: not a webhook's URL") as raised:
        open_channels(NotifyConfig(webhook=True), environment={"PHAROS_WEBHOOK": url})
    assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize("value", [None, ""])
def test_a_webhook_without_its_url_is_refused_before_anything_is_written(toy, monkeypatch, tmp_path, value):
    monkeypatch.delenv("PHAROS_WEBHOOK", raising=False)
    if value is not None:
        monkeypatch.setenv("PHAROS_WEBHOOK", value)
    with pytest.raises(InputError, match="environment variable PHAROS_WEBHOOK is to hold"):
        run(toy, "notify.webhook=true")
    assert not list(tmp_path.glob("checkout/sweeps/*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["notify.on=[ende]", "notify.webhook=true"], "notify.on=ende: did you mean end?"),
        (["notify.stall_minutes=0", "notify.webhook=true"], "notify.stall_minutes=0: must be above 0"),
        (["notify.on=[end]"], "add notify.webhook=true"),
        (["notify.stall_minutes=5"], "add notify.webhook=true"),
    ],
)
def test_settings_that_mean_nothing_are_refused(toy, settings, message):
    with pytest.raises(InputError) as raised:
        make_plan("toy", ["tracking=none", *settings])
    assert message in str(raised.value)


def test_a_sweep_from_before_there_were_messages_goes_on_without(toy):
    document = make_plan("toy", ["tracking=none"]).to_dict()
    del document["settings"]["notify"]
    assert reopen_plan(document, []).settings.notify == NotifyConfig()


def test_the_url_is_in_no_file_of_a_sweep_and_the_settings_are(toy, hook):
    run(toy, "notify.webhook=true")
    files = [path for path in (toy.space_file.parents[2] / "sweeps").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if b"SECRET" in path.read_bytes()]
    sweep_file = next(path for path in files if path.name == "sweep.yaml")
    settings = yaml.safe_load(sweep_file.read_text())["settings"]["notify"]
    assert settings == {"webhook": True, "wandb": False, "on": ["end", "breaker", "stall"], "stall_minutes": 30.0}
