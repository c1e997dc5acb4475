"""A served policy: the actions of this process, several clients, and one clear message per bad input."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from serving_thread import (
    CLIP,
    PROMPT,
    STATE,
    cameras,
    ended,
    frame,
    get,
    images,
    message,
    served,
    state,
    trained_policy,
)
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from ai_wam.client import Client, Connection, ConnectionLost, RequestRefused
from ai_wam.client.messages import pack
from ai_wam.errors import CannotContinue, InvalidValue
from ai_wam.serving.batching import joined
from ai_wam.serving.json_log import JsonLog, library_logger
from ai_wam.serving.limits import Limits
from ai_wam.serving.server import PolicyServer, check_address
from ai_wam.types import ActionChunk, Committed, Observation
from benchmarks.speed.served_process import SilentPeer

OPENPI = "pip install --no-deps openpi-client: it pins NumPy 1, which it does not need"


@pytest.fixture(scope="module")
def policy():
    return trained_policy()


@pytest.fixture(scope="module")
def server(policy):
    with served(policy) as found:
        yield found


def observed(seed=0, episode="one", seconds=0.0, committed=None):
    seen = replace(frame(seed), seconds=seconds)
    made = Observation.from_frames([seen], [PROMPT], [episode], CLIP)
    if committed is None:
        return made
    actions = torch.from_numpy(committed).float()[None]
    return replace(made, committed=Committed(actions, torch.ones(actions.shape[:2], dtype=torch.bool)))


class Slow:
    """Holds still, and takes its time; its generated videos are as large as asked for."""

    def __init__(self, seconds, megabytes=0):
        self.seconds, self.rows, self.begun = seconds, [], threading.Event()
        self.megabytes = megabytes

    def reset(self, episodes):
        pass

    def predict_action(self, observation):
        self.begun.set()
        time.sleep(self.seconds)
        self.rows.append(len(observation.prompts))
        if "fail" in observation.prompts:
            raise RuntimeError("no such luck")
        actions = observation.action[:, None].repeat(1, 8, 1)
        sure = torch.ones(actions.shape[:2])
        video = torch.zeros(len(actions), 1, 3, self.megabytes, 250, 333)
        return ActionChunk(actions, sure.bool(), sure, 0.2, {"observation": video} if self.megabytes else {})


# ------------------------------------------------------------------ the same actions


@pytest.mark.filterwarnings("ignore:connect\\(\\) must be used as a context manager:DeprecationWarning")
def test_the_genuine_client_of_openpi_gets_the_actions_of_this_process(policy, server):
    module = pytest.importorskip("openpi_client.websocket_client_policy", reason=OPENPI)
    robot = module.WebsocketClientPolicy("127.0.0.1", server.port)
    assert robot.get_server_metadata()["views"] == list(CLIP.views)
    answer = robot.infer(message(episode="one"))
    expected = policy.predict_action(observed())
    assert expected.valid.all()
    for name in ("actions", "valid", "confidence", "position_std", "status"):
        np.testing.assert_array_equal(answer[name], getattr(expected, name)[0], strict=True)
    assert answer["dt"] == expected.dt
    assert set(answer["server_timing"]) == {"infer_ms", "queue_ms", "batch_rows"}
    with pytest.raises(RuntimeError, match=r"images names the view 'up'; this policy has \['front'"):
        robot.infer({"images": {"up": np.zeros((48, 64, 3), np.uint8)}})
    later = robot.infer(message(episode="one", seconds=0.4))  # the session outlives an error
    np.testing.assert_array_equal(later["actions"], policy.predict_action(observed(seconds=0.4)).actions[0])
    assert later["server_timing"]["prev_total_ms"] > 0
    robot._ws.close()


@pytest.mark.parametrize("prefix", [None, 4])
def test_our_client_sends_cameras_once_and_gets_the_same_actions(policy, server, prefix):
    committed = None if prefix is None else np.tile(state(), (prefix, 1))
    with Client(server.address) as robot:
        robot.reset("one")
        sizes = []
        send, robot._send = robot._send, lambda data: (sizes.append(len(data)), send(data))
        for seconds in (0.0, 0.8):
            chunk = robot.predict_action(images(), cameras(), PROMPT, state(), seconds, committed)
            expected = policy.predict_action(observed(seconds=seconds, committed=committed))
            np.testing.assert_array_equal(chunk.actions, expected.actions[0])
            assert chunk.dt == expected.dt
        assert sizes[0] - sizes[1] > 2 * 25 * 8  # two cameras of 9 and 16 numbers
        moved = cameras()
        moved["front"].world_from_camera[0, 3] = 0.1
        assert chunk.valid.any()
        again = robot.predict_action(images(), moved, PROMPT, state(), 0.8, committed)
        assert not np.array_equal(again.actions, chunk.actions)
        with pytest.raises(RequestRefused, match="prefix of 3 committed actions does not fit this model"):
            robot.predict_action(images(), moved, PROMPT, state(), 0.8, np.tile(STATE, (3, 1)))


def test_a_message_may_have_rows_and_ask_for_what_was_generated(policy, server):
    rows = [observed(seed, f"row{seed}", committed=np.tile(state(seed), (4, 1))) for seed in range(2)]
    whole = joined(rows)
    parts = {name: getattr(whole, name).numpy() for name in ("video", "view_mask", "action", "seconds")}
    parts |= {name: matrix.numpy() for name, matrix in vars(whole.cameras).items()}
    parts |= {"prompts": whole.prompts, "episodes": whole.episodes}
    parts["committed"] = {name: value.numpy() for name, value in vars(whole.committed).items()}
    expected = policy.predict_action(whole)
    with Connection(server.address) as asking:
        answer = asking.ask({"observation": parts, "generated": True})
        np.testing.assert_array_equal(answer["actions"], expected.actions)
        assert answer["generated"].keys() == expected.generated.keys()
        np.testing.assert_array_equal(
            answer["generated"]["action_images"], expected.generated["action_images"]
        )
        many = parts | {"prompts": ["a"] * 17, "episodes": ["a"] * 17}
        with pytest.raises(RequestRefused, match=r"has 17 prompts .* 1 to 16 rows: .* --max_batch"):
            asking.ask({"observation": many})
        with pytest.raises(RequestRefused, match=r"video is an array .* expected .*2, 2, 3, 1, 64, 64"):
            asking.ask({"observation": parts | {"video": parts["video"][:, :1]}})


# ------------------------------------------------------------------ sessions and batches


def test_requests_that_wait_together_are_one_batch_and_get_their_own_rows(policy):
    with served(policy, wait_seconds=5.0) as found:
        robots = [Client(found.address) for _ in range(3)]

        def ask(seed):
            return robots[seed].ask(message(seed, episode=f"row{seed}"))

        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(ask, range(3)))
        for robot in robots:
            robot.close()
    for seed, answer in enumerate(answers):
        assert answer["server_timing"]["batch_rows"] == 3
        alone = policy.predict_action(observed(seed, f"row{seed}")).actions[0]
        np.testing.assert_allclose(answer["actions"], alone, atol=2e-5)
    assert np.abs(answers[0]["actions"] - answers[1]["actions"]).max() > 0.01


def test_a_request_that_fails_leaves_the_others_of_its_batch_answered():
    slow = Slow(0.0)
    with served(slow, wait_seconds=5.0) as found:
        robots = [Client(found.address) for _ in range(3)]

        def ask(prompt):
            try:
                return robots[len(prompt) % 3].ask(message(prompt=prompt))["actions"].shape
            except RequestRefused as error:
                return str(error)

        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(ask, ["go", "goo", "fail"]))
        for robot in robots:
            robot.close()
    assert answers[:2] == [(8, 8), (8, 8)]
    assert answers[2].startswith("the policy failed with RuntimeError: no such luck")
    assert slow.rows == [3, 1, 1, 1]
    (failed,) = [line for line in found.log() if line["event"] == "failed"]
    assert "Traceback" in failed["trace"]


def test_stopping_answers_what_was_accepted_and_says_so_to_the_others():
    slow = Slow(0.3)
    with served(slow) as found:
        busy, idle = Client(found.address), Client(found.address)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(busy.ask, message())
            assert slow.begun.wait(10)
            found.stop()
            assert asked.result(10)["actions"].shape == (8, 8)
        found.thread.join(10)
        for robot in (busy, idle):
            with pytest.raises(ConnectionLost, match=r"1001 the server is stopping.*call connect"):
                robot.ask(message())
        with pytest.raises(ConnectionLost, match=r"call connect\(\) first"):
            idle.ask(message())
        with pytest.raises(ConnectionLost, match="no policy is served at ws://127"):
            idle.connect()
    events = [line["event"] for line in found.log()]
    assert events[:2] == ["listening", "ready"]
    assert events[-1] == "stopped"


def test_what_takes_too_long_to_finish_is_cut_off():
    slow = Slow(1.0)
    with served(slow, stop_seconds=0.2) as found:
        with ThreadPoolExecutor(1) as pool, Client(found.address) as robot:
            asked = pool.submit(robot.ask, message())
            assert slow.begun.wait(10)
            found.stop()
            with pytest.raises(ConnectionLost, match=r"ended .* and an answer may be lost"):
                asked.result(10)
        found.thread.join(10)
    assert found.cut_off == 1
    assert [line["requests"] for line in found.log() if line["event"] == "cut_off"] == [1]


def test_a_port_that_is_taken_is_refused_with_the_way_out():
    with served(Slow(0.0)) as found:
        other = PolicyServer(Slow(0.0), CLIP, {}, JsonLog([].append))
        said = rf"cannot listen at 127.0.0.1:{found.port} .*; give another --port"
        with pytest.raises(CannotContinue, match=said):
            asyncio.run(other.run("127.0.0.1", found.port, asyncio.Event(), print, print))


# ------------------------------------------------------------------ health, metrics, token


def test_health_waits_for_the_warm_up_and_metrics_are_read_by_prometheus(policy):
    seen = []

    def warm_up(found):
        address = f"127.0.0.1:{found.log()[0]['port']}"
        seen.append(get(address, "/healthz"))
        with pytest.raises(ConnectionLost, match=r"\(503\): the policy is warming up"):
            Client(address)

    with served(policy, warm_up) as found:
        assert seen == [(503, "the policy is warming up; try again soon\n")]
        assert get(found.address, "/healthz") == (200, "OK\n")
        with Client(found.address) as robot:
            robot.ask(message())
            with pytest.raises(RequestRefused):
                robot.ask({})
            status, text = get(found.address, "/metrics")
    assert status == 200
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["ai_wam_ready",] == samples["ai_wam_sessions",] == 1
    assert samples["ai_wam_requests_total", "answered"] == samples["ai_wam_requests_total", "refused"] == 1
    assert samples["ai_wam_batch_rows_sum",] == samples["ai_wam_request_seconds_count",] - 1 == 1


def test_a_token_is_asked_of_sessions_and_metrics():
    with served(Slow(0.0), token="secret") as found:
        assert get(found.address, "/healthz")[0] == 200
        assert get(found.address, "/metrics")[0] == 401
        assert get(found.address, "/metrics", Authorization="Bearer secret")[0] == 200
        assert get(found.address, "/elsewhere", Authorization="Bearer secret")[0] == 404
        for token in (None, "secret2", "é"):
            with pytest.raises(ConnectionLost, match=r"\(401\): the token is missing or wrong; send"):
                Client(found.address, token)
        with pytest.raises(ValueError, match="must be host:port or begin with ws://"):
            Client(f"http://{found.address}", "secret")
        with Client(found.address, "secret\n") as robot:  # as a token file ends
            assert robot.ask(message())["actions"].shape == (8, 8)


def test_what_is_no_handshake_ends_and_the_others_are_served():
    with served(Slow(0.0)) as found, Client(found.address) as other:
        with socket.create_connection(("127.0.0.1", found.port)) as peer:
            peer.sendall(b"hello\r\n\r\n")
            while peer.recv(1024):
                pass
        assert other.ask(message())["actions"].shape == (8, 8)


def test_errors_of_the_library_are_lines_of_the_log():
    lines = []
    logger = library_logger(JsonLog(lines.append))
    logger.info("of no interest")
    try:
        raise OSError("no more files")
    except OSError:
        logger.error("handler of %s failed", "it", exc_info=True)
    (line,) = map(json.loads, lines)
    assert (line["event"], line["level"], line["message"]) == ("library", "ERROR", "handler of it failed")
    assert line["trace"].splitlines()[-1] == "OSError: no more files"


def test_other_machines_are_served_only_with_a_token():
    check_address("127.0.0.1", None)
    check_address("0.0.0.0", "secret")
    with pytest.raises(InvalidValue, match=r"host is '0.0.0.0', where other machines .* --token_file"):
        check_address("0.0.0.0", None)


# ------------------------------------------------------------------ limits


def test_limits_are_positive():
    with pytest.raises(InvalidValue, match="limits: rate must be finite and above 0, got 0"):
        Limits(rate=0.0)


def test_a_message_too_large_ends_its_session_with_the_limit_in_the_reason():
    with served(Slow(0.0), message_mb=0.03) as found:
        with (
            Connection(found.address) as asking,
            pytest.raises(ConnectionLost, match=r"no message of that size \(1009 .*30000.*message_mb"),
        ):
            asking.ask({"images": {"front": np.zeros((200, 200, 3), np.uint8)}})
        with connect(f"ws://{found.address}", compression=None) as raw:  # as openpi's client sees it
            raw.recv()
            raw.send(b"\0" * 40_000)
            with pytest.raises(ConnectionClosed, match="1009"):
                raw.recv()


def test_sessions_beyond_the_limit_are_refused_with_the_reason():
    with served(Slow(0.0), clients=1) as found:
        taken = r"1013 all 1 sessions are taken \(--limits.clients\)"
        with Client(found.address), pytest.raises(ConnectionLost, match=taken):
            Client(found.address)
        ended(found, "session-1", "1000")
        with Client(found.address) as robot:
            assert robot.ask(message())["dt"] == 0.2


def test_requests_beyond_the_rate_are_refused_and_later_ones_answered():
    with served(Slow(0.0), rate=2.0) as found, Client(found.address) as robot:
        robot.ask(message())
        robot.ask(message())
        with pytest.raises(RequestRefused, match=r"more than 2 requests per second .* wait 0.\d+ s"):
            robot.ask(message())
        time.sleep(0.6)
        robot.ask(message())


def test_an_idle_session_is_ended_with_the_reason():
    with served(Slow(0.0), idle_seconds=0.2) as found, Client(found.address) as robot:
        time.sleep(0.5)
        with pytest.raises(ConnectionLost, match=r"1008 no request for 0.2 s \(--limits.idle_seconds\)"):
            robot.ask(message())


def test_a_client_that_answers_no_ping_is_dropped():
    with served(Slow(0.0), silent_seconds=2.0) as found, Client(found.address) as other:
        peer = SilentPeer(found.port)
        ended(found, "session-2", "1011 keepalive ping timeout")
        assert other.ask(message())["actions"].shape == (8, 8)
        peer.close()


def test_a_client_that_takes_no_answer_is_dropped_and_the_others_are_served():
    policy = Slow(0.0, megabytes=20)
    with served(policy, silent_seconds=2.0) as found, Client(found.address) as other:
        peer = SilentPeer(found.port)
        peer.ask(pack(message(generated=True)))
        assert policy.begun.wait(10)
        assert other.ask(message())["actions"].shape == (8, 8)
        ended(found, "session-2", "took no answer for 2 s")
        peer.close()


def test_a_client_that_vanishes_while_its_chunk_is_computed_leaves_the_others_served():
    policy = Slow(0.2)
    with served(policy) as found, Client(found.address) as other:
        peer = SilentPeer(found.port)
        peer.ask(pack(message()))
        assert policy.begun.wait(10)
        peer.close()
        assert other.ask(message())["actions"].shape == (8, 8)
        ended(found, "session-2", "")


def test_a_client_that_does_not_wait_for_its_answer_is_served_again():
    slow = Slow(0.5)
    with served(slow) as found, Client(found.address, timeout=0.2) as robot:
        with pytest.raises(ConnectionLost, match=r"did not answer within 0.2 s; give a longer timeout"):
            robot.ask(message())
        robot._timeout = 30
        robot.connect()
        assert robot.ask(message())["actions"].shape == (8, 8)
