"""Work that nobody waits for: in its order, again until it succeeds, and never the reason that a process stays."""

import itertools
import threading
import time
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharos import background
from pharos.background import Background, Outbox, in_parallel
from pharos.errors import StorageError


def later(condition, seconds=5.0):
    """Waits until something is so; says whether it came to be."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


def threads_of(name):
    return [thread for thread in threading.enumerate() if thread.name == name and thread.is_alive()]


@settings(max_examples=30)
@given(count=st.integers(0, 12), threads=st.integers(1, 5))
def test_results_come_in_the_order_of_the_jobs_and_so_many_run_at_once(count, threads):
    running, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(min(count, threads)) if count else None

    def job(index):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if index < together.parties:
            together.wait(5)  # as many at once as there may be
        with lock:
            running -= 1
        return index * 10

    assert in_parallel([lambda index=index: job(index) for index in range(count)], threads) == [
        index * 10 for index in range(count)
    ]
    assert most == min(count, threads)


def test_the_calling_thread_does_its_share():
    alone = in_parallel([threading.get_ident] * 3, threads=1)
    assert set(alone) == {threading.get_ident()}
    both = threading.Barrier(2)

    def job():
        both.wait(5)
        return threading.get_ident()

    assert threading.get_ident() in in_parallel([job] * 2, threads=2)


def test_the_first_error_is_raised_and_what_had_not_begun_is_left_out():
    began, failed = [], threading.Event()

    def early(index):
        began.append(index)
        assert failed.wait(5)
        raise ValueError(f"late {index}")

    def fail():
        began.append("failing")
        try:
            raise KeyError("first")
        finally:
            threading.Timer(0.1, failed.set).start()

    jobs = [lambda: early(0), lambda: early(1), fail, *[lambda: began.append("left out")] * 20]
    with pytest.raises(KeyError, match="first"):
        in_parallel(jobs, threads=3)
    assert sorted(map(str, began)) == ["0", "1", "failing"]


class Killed(BaseException):
    """The process dies here."""


def test_what_ends_a_helper_ends_the_caller():
    both = threading.Barrier(2)

    def job():
        both.wait(5)
        if threading.current_thread() is not threading.main_thread():
            raise Killed

    with pytest.raises(Killed):
        in_parallel([job, job], threads=2)


@pytest.fixture
def outbox(monkeypatch):
    """An outbox that tries again at once."""
    monkeypatch.setattr(background, "pauses", lambda: itertools.repeat(0.002))
    outbox = Outbox("outbox-of-a-test", "store://home")
    yield outbox
    outbox.close()
    assert later(lambda: not threads_of("outbox-of-a-test"))


class Gate:
    """A job that hangs until it is let go."""

    def __init__(self, outcome=lambda: None):
        self.began, self.opened, self.outcome = threading.Event(), threading.Event(), outcome

    def __call__(self):
        self.began.set()
        assert self.opened.wait(10)
        self.outcome()


def unavailable():
    raise StorageError("store://home: come back later", is_final=False)


def refused():
    raise StorageError("store://home/x: access denied", is_final=True)


def broken():
    raise KeyError("a fault of ours")


def test_jobs_are_done_once_and_in_their_order(outbox):
    done = []
    for key in "abcdef":
        outbox.put(key, lambda key=key: done.append(key))
    outbox.flush(5)
    assert done == list("abcdef")
    outbox.flush(0)


def test_of_several_under_a_key_the_newest_is_done_in_the_place_of_the_first(outbox):
    gate, done = Gate(), []
    outbox.put("gate", gate)
    assert gate.began.wait(5)
    for key, value in (("a", 1), ("b", 2), ("a", 3), ("gate", 4), ("a", 5)):
        outbox.put(key, lambda key=key, value=value: done.append((key, value)))
    assert done == []
    gate.opened.set()
    outbox.flush(5)
    assert done == [("a", 5), ("b", 2), ("gate", 4)]  # what had begun is not left out


def test_what_may_pass_is_tried_again_before_all_that_waits(outbox):
    done, left = [], [unavailable] * 5

    def shaky():
        if left:
            left.pop()()
        done.append("shaky")

    gate = Gate()
    outbox.put("gate", gate)
    outbox.put("shaky", shaky)
    outbox.put("next", lambda: done.append("next"))
    gate.opened.set()
    outbox.flush(5)
    assert done == ["shaky", "next"]
    assert outbox.trouble == (0.0, "")
    assert outbox.refusal == ""


def test_a_newer_job_takes_the_place_of_one_that_is_tried_again(outbox):
    done = []
    outbox.put("a", unavailable)
    outbox.put("b", lambda: done.append("b"))
    assert later(lambda: outbox.trouble[1] == "store://home: come back later")
    assert done == []
    outbox.put("a", lambda: done.append("newer"))
    outbox.flush(5)
    assert done == ["newer", "b"]


def test_what_is_refused_is_said_and_the_others_still_go_out(outbox):
    done, gate = [], Gate()
    outbox.put("gate", gate)
    outbox.put("x", refused)
    outbox.put("y", lambda: done.append("y"))
    outbox.put("z", broken)
    outbox.put("w", lambda: done.append("w"))
    gate.opened.set()
    assert later(lambda: done == ["y", "w"])
    assert outbox.refusal == "store://home/x: access denied"  # the first
    for complain in (lambda: outbox.check(60), lambda: outbox.flush(60)):
        with pytest.raises(StorageError, match=r"^store://home/x: access denied$") as caught:
            complain()
        assert caught.value.is_final


def test_a_fault_of_ours_is_logged_said_in_one_line_and_the_others_still_go_out(outbox, caplog):
    done = []
    outbox.put("x", broken)
    outbox.put("y", lambda: done.append("y"))
    assert later(lambda: done == ["y"])
    assert outbox.refusal == "store://home: 'a fault of ours'"
    assert "Traceback" in caplog.text


def test_without_anything_to_do_all_is_well(outbox):
    time.sleep(0.05)
    assert outbox.trouble == (0.0, "")
    outbox.check(0)


def test_what_gets_no_answer_is_trouble_that_grows_from_when_it_was_put(outbox):
    time.sleep(0.5)  # nothing to do for a while is no trouble
    gate = Gate()
    outbox.put("gate", gate)
    assert gate.began.wait(5)
    seconds, why = outbox.trouble
    assert seconds < 0.45
    assert why == "no answer"
    time.sleep(0.1)
    assert outbox.trouble[0] >= 0.1
    outbox.check(10)
    with pytest.raises(StorageError, match=r"^store://home: no answer \(nothing written for 0 s\)$") as caught:
        outbox.check(0.05)
    assert not caught.value.is_final
    gate.opened.set()
    outbox.flush(5)
    assert outbox.trouble == (0.0, "")


def test_trouble_says_the_last_reason_and_ends_with_the_first_success(outbox):
    gate = Gate()
    outbox.put("a", unavailable)
    assert later(lambda: outbox.trouble[0] > 0.5)
    assert outbox.trouble[1] == "store://home: come back later"
    outbox.put("b", gate)
    outbox.put("a", lambda: None)
    assert gate.began.wait(5)
    seconds, why = outbox.trouble
    assert seconds < 0.45
    assert why == "no answer"
    gate.opened.set()


def test_trouble_does_not_say_what_was_wrong_with_another_job(outbox):
    outcomes, gate = iter([unavailable, refused]), Gate()

    def fails():
        next(outcomes)()

    outbox.put("a", fails)
    outbox.put("b", gate)
    assert gate.began.wait(5)
    assert outbox.trouble[1] == "no answer"
    gate.opened.set()


def test_a_flush_waits_for_what_is_in_hand(outbox):
    gate, flushed = Gate(), []
    outbox.put("gate", gate)
    waiter = threading.Thread(target=lambda: flushed.append(outbox.flush(5)))
    waiter.start()
    assert gate.began.wait(5)
    waiter.join(0.1)
    assert waiter.is_alive()
    gate.opened.set()
    waiter.join(5)
    assert flushed == [None]


@pytest.mark.parametrize("job", [unavailable, "hangs"])
def test_a_flush_gives_up_after_its_patience_with_the_reason(outbox, job):
    gate = Gate()
    outbox.put("a", gate if job == "hangs" else job)
    started = time.monotonic()
    with pytest.raises(StorageError, match="no answer" if job == "hangs" else "come back later") as caught:
        outbox.flush(0.3)
    assert 0.25 < time.monotonic() - started < 5
    assert not caught.value.is_final
    gate.opened.set()


def test_a_flush_is_patient_with_a_store_that_gets_on_slowly(outbox):
    done = []
    for index in range(6):
        outbox.put(str(index), lambda index=index: (time.sleep(0.1), done.append(index)))
    outbox.flush(0.3)
    assert done == list(range(6))


def test_a_job_is_done_every_so_many_seconds(outbox):
    done = []
    outbox.every(0.05, "beat", lambda: done.append(time.monotonic()))
    assert not done
    assert later(lambda: len(done) >= 5)
    assert all(0.04 <= after - before <= 0.5 for before, after in itertools.pairwise(done))


def test_other_jobs_do_not_wait_for_a_timer(outbox):
    done = []
    outbox.every(60, "beat", lambda: done.append("beat"))
    outbox.put("a", lambda: done.append("a"))
    outbox.flush(5)
    assert done == ["a"]


def test_what_a_timer_adds_and_what_is_put_under_its_key_is_one_job(outbox):
    gate, done = Gate(), []
    outbox.put("gate", gate)
    outbox.every(0.02, "beat", lambda: done.append("timer"))
    assert gate.began.wait(5)
    outbox.put("beat", lambda: done.append("put"))
    time.sleep(0.2)
    gate.opened.set()
    assert later(lambda: done)
    assert done[0] == "put"
    assert later(lambda: len(done) > 2)
    assert set(done[1:]) == {"timer"}


def test_a_timer_does_not_hide_that_nothing_goes_out(outbox):
    outbox.every(0.02, "beat", unavailable)
    outbox.put("a", unavailable)
    assert later(lambda: outbox.trouble[0] > 0.3)
    with pytest.raises(StorageError, match="come back later"):
        outbox.check(0.2)


@pytest.mark.parametrize("state", ["idle", "waiting for a timer", "trying again", "in a long pause"])
def test_a_closed_one_lets_its_thread_end(monkeypatch, state):
    monkeypatch.setattr(background, "pauses", lambda: itertools.repeat(60 if state == "in a long pause" else 0.002))
    outbox = Outbox("outbox-to-close", "store://home")
    if state == "waiting for a timer":
        outbox.every(60, "beat", lambda: None)
    elif state != "idle":
        outbox.put("a", unavailable)
        assert later(lambda: outbox.trouble[1] == "store://home: come back later")
    outbox.close()
    assert later(lambda: not threads_of("outbox-to-close"), 2)


def test_a_closed_one_ends_what_it_has_in_hand_and_begins_nothing(outbox):
    gate, done = Gate(lambda: done.append("in hand")), []
    outbox.put("gate", gate)
    outbox.put("next", lambda: done.append("next"))
    assert gate.began.wait(5)
    outbox.close()
    gate.opened.set()
    assert later(lambda: not threads_of("outbox-of-a-test"))
    assert done == ["in hand"]


def test_its_thread_keeps_no_process_from_ending(outbox):
    assert all(thread.daemon for thread in threads_of("outbox-of-a-test"))
    assert threads_of("outbox-of-a-test")


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["put", "put", "put", "rest"]), st.sampled_from("abc"), st.integers(0, 2)), max_size=30
)


@settings(max_examples=60)
@given(plans=st.lists(ACTIONS, min_size=1, max_size=3), fates=st.lists(st.booleans(), max_size=30))
def test_in_the_end_the_store_has_the_newest_of_every_key_however_it_fails_on_the_way(plans, fates):
    """Several threads put values of their own keys; the store fails as drawn, before or after it has taken a value."""
    store, newest, written, fate = {}, {}, {}, iter(fates)

    def write(key, value, is_lost):
        if next(fate, True):
            store[key] = value
            written.setdefault(key, []).append(value)
            if is_lost == 1:  # the answer gets lost, once
                is_lost = 0
                if next(fate, True):
                    return
                unavailable()
            return
        unavailable()

    def drive(number, plan):
        for value, (action, key, size) in enumerate(plan):
            if action == "rest":
                time.sleep(size / 1000)
            else:
                newest[f"{number}{key}"] = value
                outbox.put(f"{number}{key}", lambda name=f"{number}{key}", v=value, s=size: write(name, v, s))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(background, "pauses", lambda: itertools.repeat(0.0))
        outbox = Outbox("outbox-under-stress", "store://home")
        drivers = [threading.Thread(target=drive, args=each) for each in enumerate(plans)]
        for driver in drivers:
            driver.start()
        for driver in drivers:
            driver.join(10)
        outbox.flush(10)
        outbox.close()
    assert store == newest
    assert all(values == sorted(values) for values in written.values()), "an older value after a newer one"
    assert outbox.refusal == ""


def test_a_background_does_one_job_after_the_other_in_a_thread_of_its_own():
    line, found = Background("line-of-a-test"), []
    assert line.idle.is_set()
    assert not threads_of("line-of-a-test")  # before there is something to do there is no thread
    for index in range(3):
        gate = Gate(lambda index=index: found.append((index, threading.current_thread())))
        line.start(gate)
        assert not line.idle.wait(0.02)
        gate.opened.set()
        assert line.idle.wait(5)
    assert [index for index, _ in found] == [0, 1, 2]
    assert len({thread for _, thread in found}) == 1
    assert found[0][1].daemon
    assert found[0][1] is not threading.current_thread()


def test_a_background_takes_no_second_job_while_it_has_one():
    line, gate = Background("line"), Gate()
    line.start(gate)
    with pytest.raises(AssertionError):
        line.start(lambda: None)
    gate.opened.set()
    assert line.idle.wait(5)


def test_a_background_lets_go_of_what_a_job_held():
    class Held:
        pass

    line, held = Background("line"), Held()
    gone = weakref.ref(held)
    line.start(lambda held=held: None)
    assert line.idle.wait(5)
    del held
    assert gone() is None
