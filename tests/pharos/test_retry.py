"""What a store's errors mean: which may pass, what is said of them, and that no secret is in it."""

import errno
import itertools
import socket

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from benchmarks.bucket import Fault
from pharos import retry
from pharos.errors import InputError, StorageError
from pharos.retry import again, is_final, pauses, reason, redact
from pharos.storage import Storage


def error_of(act):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any error is what is asked for
        act()
    return caught.value


def ask(url, how="put", bucket="lab", **config):
    """What s3fs raises for one request to a server, as a storage makes it."""
    options = {"connect_timeout": 1, "read_timeout": 1, **config}
    home = Storage(f"s3://{bucket}", {"endpoint_url": url, "config_kwargs": options}, patience=0)
    requests = {
        "put": lambda: home.write_bytes("file", b"some"),
        "get": lambda: home.read_bytes("file"),
        "head": lambda: home.exists("file"),
        "list": lambda: home.list("folder"),
        "remove": lambda: home.remove("file"),
    }
    error = error_of(requests[how])
    assert isinstance(error, StorageError)
    assert error.is_final == is_final(error.__cause__)
    assert reason(error.__cause__) in str(error)
    return error.__cause__


FINAL = {
    "NoSuchBucket": (404, "there is no such bucket"),
    "AccessDenied": (403, "access denied"),
    "InvalidAccessKeyId": (403, "the access key is unknown there"),
    "SignatureDoesNotMatch": (403, "the secret key does not fit"),
    "InvalidBucketName": (400, "InvalidBucketName: Not so."),
    "AuthorizationHeaderMalformed": (400, "AuthorizationHeaderMalformed"),
}
PASSING = {
    "SlowDown": (503, "SlowDown: Not so."),
    "InternalError": (500, "InternalError"),
    "ServiceUnavailable": (503, "ServiceUnavailable"),
    "RequestTimeout": (400, "Not so."),
    "RequestTimeTooSkewed": (403, "this machine's clock differs"),
    "SomethingNobodyKnows": (500, "An error occurred (SomethingNobodyKnows)"),
}


HOWS = pytest.mark.parametrize("how", ["put", "get", "list", "remove"])


@HOWS
def test_what_a_store_refuses_is_final_and_said_in_our_words(answers, how):
    for code, (status, words) in FINAL.items():
        answers.say(status, code)
        error = ask(answers.url, how)
        assert is_final(error), code
        assert reason(error).startswith(words)
        assert "\n" not in reason(error)


@HOWS
def test_what_a_store_cannot_do_now_may_pass(answers, how):
    for code, (status, words) in PASSING.items():
        answers.say(status, code)
        error = ask(answers.url, how)
        assert not is_final(error), code
        assert reason(error).startswith(words)
        assert "\n" not in reason(error)


@HOWS
def test_a_gateway_that_knows_no_s3_may_answer_better_later(answers, how):
    for status, body in ((502, b""), (502, b"<html>\nBad gateway</html>"), (504, b""), (503, b"no"), (429, b"")):
        answers.say(status, body=body)
        error = ask(answers.url, how)
        assert not is_final(error)
        assert reason(error)
        assert "\n" not in reason(error)


@pytest.mark.parametrize("code", ["AccessDenied", "RequestTimeTooSkewed"])
def test_a_bare_403_to_a_head_request_may_be_the_clock(answers, code):
    answers.say(403, code)
    error = ask(answers.url, "head")
    assert isinstance(error, PermissionError)
    assert not is_final(error)
    assert reason(error) == "refused (403); check the credentials of this machine and its clock"


def test_a_clock_that_differs_is_a_permission_error_to_s3fs_and_passes_all_the_same(answers):
    answers.say(403, "RequestTimeTooSkewed")
    error = ask(answers.url)
    assert isinstance(error, PermissionError)
    assert not is_final(error)


@pytest.mark.parametrize("fault", Fault)
def test_every_fault_of_the_network_may_pass(proxy, url, fault):
    proxy.before = lambda method, path: fault
    proxy.stall_seconds = 0.05
    for how in ("put", "get", "head", "list", "remove"):
        proxy.counts.clear()
        error = ask(proxy.url, how)
        assert not is_final(error), (how, error)
        assert "\n" not in reason(error)
        assert proxy.counts[fault]


def test_a_bucket_that_is_not_there_is_final(proxy):
    error = ask(proxy.url, bucket="that-nobody-has-made")
    assert isinstance(error, FileNotFoundError)  # s3fs does not tell it from a missing file
    assert is_final(error)
    assert reason(error) == "there is no such bucket"


def test_a_refused_connection_may_pass(aws):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = ask(f"http://127.0.0.1:{port}")
    assert not is_final(error)
    assert reason(error).startswith("Could not connect to the endpoint")


def test_a_host_that_nobody_knows_may_be_known_later(aws):
    assert not is_final(ask("http://nowhere.invalid:9000"))


def test_no_answer_may_pass(aws):
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections and says nothing
        error = ask(f"http://127.0.0.1:{listener.getsockname()[1]}", "get", read_timeout=0.2)
    assert not is_final(error)
    assert reason(error).startswith("Read timeout on endpoint")


def test_a_truncated_answer_may_pass(answers):
    answers.say(200, body=b"some", length=100)
    assert not is_final(ask(answers.url, "get"))


def test_no_credentials_is_final_and_says_what_to_set(answers, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    error = ask(answers.url, read_timeout=0.9)  # no client that has found some before
    assert is_final(error)
    assert reason(error).startswith("no credentials; set AWS_PROFILE or ")


@pytest.mark.parametrize(
    "error", [FileNotFoundError(), PermissionError(), IsADirectoryError(), NotADirectoryError(), FileExistsError()]
)
def test_what_a_file_system_says_of_a_path_is_final(error):
    assert is_final(error)


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "I/O"), ConnectionResetError(), TimeoutError(), BrokenPipeError(), socket.gaierror()]
)
def test_all_other_errors_of_the_system_may_pass(error):
    assert not is_final(error)


@pytest.mark.parametrize("error", [ValueError("x"), TypeError("x"), RuntimeError("x"), InputError("x"), KeyError("x")])
def test_a_fault_of_ours_is_final(error):
    assert is_final(error)


def test_a_storage_error_says_itself_whether_it_is_final():
    assert is_final(StorageError("x", is_final=True))
    assert not is_final(StorageError("x", is_final=False))


def test_a_cause_that_is_no_answer_of_a_store_changes_nothing():
    error = PermissionError(13, "Permission denied")
    error.__cause__ = ConnectionResetError()
    assert is_final(error)
    assert reason(error) == "Permission denied"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(28, "No space left on device", "/some/path"), "No space left on device"),
        (ValueError("first\nsecond"), "first"),
        (ValueError("\n first \n second"), "first "),
        (ValueError(""), "ValueError"),
        (TimeoutError(), "no answer in time"),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
)
def test_a_reason_is_one_line_and_never_empty(error, text):
    assert reason(error) == text


class Clock:
    """The time, which passes as one sleeps."""

    def __init__(self):
        self.now = 1000.0
        self.slept = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(retry, "time", clock)
    return clock


def failing(errors, result="done"):
    """Raises these, one after the other, and then returns."""
    left = iter(errors)

    def act():
        act.calls += 1
        for error in left:
            raise error
        return result

    act.calls = 0
    return act


def test_what_fails_now_and_then_succeeds(clock):
    act = failing([ConnectionResetError()] * 7)
    assert again(act, "cannot", 60) == "done"
    assert act.calls == 8
    assert len(clock.slept) == 7


def test_pauses_grow_to_a_few_seconds_and_differ():
    first, second = (list(itertools.islice(pauses(), 20)) for _ in range(2))
    assert first != second
    for waits in (first, second):
        assert 0.05 <= waits[0] <= 0.1
        assert all(0.5 * min(0.1 * 2**n, 5.0) <= wait <= 5.0 for n, wait in enumerate(waits))


def test_without_patience_there_is_one_attempt_and_no_word_of_it(clock):
    act = failing([ConnectionResetError("gone")] * 9)
    with pytest.raises(StorageError, match=r"^cannot read x: gone$") as caught:
        again(act, "cannot read x", 0)
    assert act.calls == 1
    assert not clock.slept
    assert not caught.value.is_final
    assert isinstance(caught.value.__cause__, ConnectionResetError)


@given(patience=st.floats(0.01, 400), took=st.floats(0, 30))
def test_attempts_go_on_for_as_long_as_patience_lasts_and_their_number_is_said(patience, took):
    clock, ends = Clock(), []
    start = clock.now

    def act():
        clock.now += took
        ends.append(clock.now - start)
        raise ConnectionResetError("gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "time", clock)
        error = error_of(lambda: again(act, "cannot", patience))
    assert isinstance(error, StorageError)
    assert all(
        began <= patience for began in [0, *(end + slept for end, slept in zip(ends, clock.slept, strict=False))]
    )
    assert ends[-1] > patience - 5.0  # the longest pause
    said = f" ({len(ends)} attempts in {patience:g} s)" if len(ends) > 1 else ""
    assert str(error) == f"cannot: gone{said}"
    assert not error.is_final


def test_what_is_final_is_asked_for_once(clock):
    act = failing([PermissionError(13, "Permission denied")])
    with pytest.raises(StorageError, match=r"^cannot write x: Permission denied$") as caught:
        again(act, "cannot write x", 60)
    assert caught.value.is_final
    assert act.calls == 1


def test_what_becomes_final_ends_it(clock):
    act = failing([ConnectionResetError()] * 3 + [ValueError("no\nsuch thing")])
    with pytest.raises(StorageError, match=r"^cannot: no$") as caught:
        again(act, "cannot", 60)
    assert caught.value.is_final
    assert act.calls == 4


def test_a_missing_file_is_no_error_of_the_store(clock):
    missing = FileNotFoundError(2, "No such file", "x")
    assert error_of(lambda: again(failing([ConnectionResetError(), missing]), "cannot", 60)) is missing


def test_a_missing_bucket_is_no_missing_file(clock):
    missing = FileNotFoundError("The specified bucket does not exist")
    missing.__cause__ = Exception("NoSuchBucket")
    missing.__cause__.response = {"Error": {"Code": "NoSuchBucket"}}
    with pytest.raises(StorageError, match=r"^cannot: there is no such bucket$") as caught:
        again(failing([missing]), "cannot", 60)
    assert caught.value.is_final


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_a_process_that_ends_does_not_try_again(clock, end):
    act = failing([end()])
    with pytest.raises(end):
        again(act, "cannot", 60)
    assert act.calls == 1


SECRET_NAMES = [
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "WANDB_API_KEY",
    "PGPASSWORD",
    "PHAROS_STUDY_PASSWORD",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "hf_token",
]
WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=30)


@given(name=st.sampled_from(SECRET_NAMES), secret=WORDS, before=st.text(max_size=9), after=st.text(max_size=9))
def test_the_value_of_a_variable_that_is_called_a_secret_is_not_seen(name, secret, before, after):
    assume(secret not in before + "***" + after)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, secret)
        assert secret not in redact(before + secret + after)
        assert secret not in reason(ValueError(f"{before}{secret}{after}"))


@given(secret=WORDS, more=WORDS)
@example(secret="abcdef", more="ghijkl")
def test_a_secret_that_begins_like_another_leaves_nothing_of_it(secret, more):
    assume(secret not in more)
    with pytest.MonkeyPatch.context() as patch:
        for names in (("A_TOKEN", "B_TOKEN"), ("B_TOKEN", "A_TOKEN")):
            for name in names:
                patch.delenv(name, raising=False)
            for name, value in zip(names, (secret, secret + more), strict=True):
                patch.setenv(name, value)
            assert redact(f"<{secret}{more}>") == "<***>"


def test_a_secret_of_several_lines_is_not_seen_in_the_first(monkeypatch):
    monkeypatch.setenv("SOME_SECRET", "begin\nmiddle\nend")
    assert "begin" not in reason(ValueError("not so: begin\nmiddle\nend"))


def test_what_is_no_secret_is_left_as_it_is(monkeypatch):
    monkeypatch.setenv("SOME_NAME", "plain-value")
    monkeypatch.setenv("SHORT_TOKEN", "lab")
    text = "cannot write s3://lab/plain-value/a@b/file.json: why not? see http://host:9000/lab?list-type=2&prefix=a%2F"
    assert redact(text) == text


# As URLs have them: what is special there is written otherwise, except that people paste what they have.
USERS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/@:"), min_size=1, max_size=12)
PASSWORDS = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/*"), min_size=1, max_size=12
)


@given(user=USERS, password=PASSWORDS, scheme=st.sampled_from(["s3", "http", "https", "postgresql+psycopg"]))
@example(user="me", password="p@ss", scheme="https")
def test_user_and_password_of_a_url_are_not_seen(user, password, scheme):
    text = f"Could not connect to {scheme}://{user}:{password}@host:9000/lab?x=1 (really)"
    assert redact(text) == f"Could not connect to {scheme}://***@host:9000/lab?x=1 (really)"


@pytest.mark.parametrize(
    "text",
    [
        "https://h/lab/x?X-Amz-Credential=AKIA%2F2026&X-Amz-Signature=0a1b2c&X-Amz-Expires=1",
        "https://h/lab/x?X-Amz-Signature=0a1b2c",
        "https://account.blob.core.windows.net/lab/x?sv=2024&sig=0a1b2c%3D&se=1",
        "https://storage.googleapis.com/lab/x?X-Goog-Signature=0a1b2c&x=1",
        "https://h/lab/x?AWSAccessKeyId=AKIA&Signature=0a1b2c&Expires=1",
    ],
)
def test_the_signature_of_a_url_is_not_seen(text):
    redacted = redact(f"no answer from {text} at all")
    assert "0a1b2c" not in redacted
    assert "AKIA%2F2026" not in redacted
    assert redacted.startswith("no answer from https://")
    assert redacted.endswith(" at all")


def test_no_error_of_a_storage_shows_a_secret(monkeypatch, answers):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-indeed")
    answers.say(400, body=b"<Error><Code>Odd</Code><Message>very-secret-indeed, testing-key</Message></Error>")
    storage = Storage("s3://lab/home", {"endpoint_url": answers.url}, patience=0)
    for act in (
        lambda: storage.write_bytes("x", b""),
        lambda: storage.read_bytes("x"),
        storage.list,
        storage.sizes,
        storage.remove,
    ):
        with pytest.raises(StorageError, match=r"cannot .* s3://lab/home.*Odd.*: \*\*\*, \*\*\*$") as caught:
            act()
        assert "very-secret" not in str(caught.value)
        assert "testing-key" not in str(caught.value)
        assert "\n" not in str(caught.value)
