"""What a user types besides the straight way, against one stack: bad input, Ctrl-C, cancels."""

import json
import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from tests.conftest import WORDS

LINE = json.dumps({"prompt": "a b", "completion": " c d"}) + "\n"
BIG = LINE * 4711 + '{"prompt": "a", "completion": 7}\n' + LINE * 5288


def write(folder, name, text):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def below(home):
    """Processes that work for a home."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = [*(process.info["cmdline"] or []), process.info["cwd"] or ""]
        if any(str(home) in word for word in words):
            found.append(words)
    return found


def test_of_two_ups_at_once_one_is_up_and_the_other_says_so(stack):
    assert sorted(code for _, _, code in stack.ups) == [0, 1]
    (_, lost, _) = next(one for one in stack.ups if one[2] == 1)
    (_, won, _) = next(one for one in stack.ups if one[2] == 0)
    assert lost.startswith("error: already up (pid ")
    assert "error" not in won
    assert "already up" in stack("up", "-d", code=1).stderr


@pytest.mark.parametrize(
    ("data", "flags", "code", "said"),
    [
        (LINE, ["--base", "nosuch"], 2, ['no base is called "nosuch"', "registered: tiny"]),
        (LINE, ["--base", "tiny", "--rank", "0"], 2, ["--rank", "0 is not in the range"]),
        (LINE, ["--base", "tiny", "--rank", "17"], 2, ["larger than the layer", "at most 16"]),
        (
            LINE,
            ["--base", "tiny", "--target-modules", "query"],
            2,
            ["match no layer", "down_proj, gate_proj, k_proj"],
        ),
        ("", ["--base", "tiny"], 3, ["the file is empty"]),
        (b"\x89PNG\r\n\x1a\n", ["--base", "tiny"], 3, ["line 1", "is not UTF-8"]),
        (BIG, ["--base", "tiny"], 3, ["1 of 10,000 lines", "line 4712", "$.completion"]),
    ],
    ids=["base", "rank-0", "rank-17", "targets", "empty", "binary", "one-of-10000"],
)
def test_bad_input_is_named_and_makes_no_job(stack, data, flags, code, said):
    before = stack.json("jobs")["data"]
    file = write(stack.folder, "bad data.jsonl", data)
    done = stack("submit", file, *flags, "-d", code=code)
    assert done.stdout == ""
    for words in said:
        assert words in done.stderr
    assert stack.json("submit", file, *flags, "-d", code=code)["error"]["exit_code"] == code
    assert stack.json("jobs")["data"] == before


def test_a_wrong_key_is_4(stack):
    assert "key is not valid" in stack("jobs", code=4, MANYLORA_API_KEY="wrong").stderr


def test_an_auto_rank_fits_and_truncated_lines_are_named(stack):
    long = json.dumps({"prompt": "a b", "completion": " c" * 100}) + "\n"
    file = write(stack.folder, "long.jsonl", LINE * 3 + long + LINE)
    flags = ["--base", "tiny", "--epochs", "1", "--max-length", "32", "--suffix", "auto"]
    job = stack.json("submit", file, *flags, "-d")
    stack("wait", job["id"])
    assert stack.json("show", job["id"])["x"]["hyperparameters"]["lora_r"] == 16
    assert "1 training example truncated at 32 tokens: line 4" in stack("logs", job["id"]).stdout
    name = stack.json("show", job["id"])["fine_tuned_model"]
    for ref in (job["id"], name, "auto"):
        target = stack.folder / "out" / ref.replace(":", "-")
        stack("fetch", ref, "-o", target)
        assert stack.json("verify", target)["ok"]
    assert "no adapter nosuch" in stack("fetch", "nosuch", "-o", "x", code=1).stderr
    assert not (stack.folder / "x").exists()
    for flags in (["--base", "tiny"], ["--adapter", target]):
        assert stack("generate", *flags, "a b", "--max-tokens", "4").stdout.strip()


def pairs(count, first=0):
    """A habit that can be learnt: after two words come always the same three."""
    words = [(a, b) for a in WORDS for b in WORDS][first : first + count]
    return "".join(
        json.dumps({"prompt": f"{a} {b}", "completion": " cat dog mat"}) + "\n" for a, b in words
    )


def test_a_sweep_halves_its_trials_and_is_found_again(stack):
    write(stack.folder, "train.jsonl", pairs(32))
    write(stack.folder, "valid.jsonl", pairs(8, first=40))
    call = ["sweep", "train.jsonl", "--base", "tiny", "--validation", "valid.jsonl"]
    call += ["--over", "lora_r=2,8", "--over", "learning_rate=0.0005,0.02", "--epochs", "4"]
    call += ["--budget", "128"]
    told = stack.json(*call, "-o", "sweep")
    assert (told["rungs"], told["entering"], told["done"]) == ([32], [4], True)
    cut = stack.json(*call[:-2])
    assert (cut["rungs"], cut["entering"], cut["done"]) == ([8, 16, 32], [4, 2, 1], True)
    for one in (told, cut):
        assert one["pick"]["learning_rate"] == 0.02
    fates = [trial["fate"] for trial in cut["trials"]]
    assert fates.count("picked") == 1
    assert sum("step 8" in fate or "step 16" in fate for fate in fates) == 3
    assert {path.name for path in (stack.folder / "sweep").iterdir()} == {
        "report.md", "sweep.png", "trials.csv",
    }  # fmt: skip
    before = stack.json("jobs")["data"]
    assert stack.json(*call[:-2])["trials"] == cut["trials"]
    assert len(stack.json("jobs")["data"]) == len(before)
    job = stack.json("show", cut["pick"]["job_id"])
    assert job["metadata"]["sweep"] == cut["sweep"]


def test_a_quality_report_beside_the_same_weights_and_a_model_of_its_own(stack):
    write(stack.folder, "train.jsonl", pairs(32))
    write(stack.folder, "valid.jsonl", pairs(8, first=40))
    call = ["submit", "train.jsonl", "--base", "tiny", "--val", "valid.jsonl", "--seed", "5"]
    call += ["--rank", "8", "--lr", "0.02", "--eval-every", "8", "-d"]
    plain = stack.json(*call)["id"]
    with_report = stack.json(*call, "--quality")["id"]
    stack("wait", plain, with_report)
    told = stack.json("quality", with_report)
    assert told["cut"] is None
    held = told["heldout"]
    assert (held["on"], held["examples"]) == ("validation", 8)
    assert held["adapter"]["loss"] < held["base"]["loss"]
    valid = points(stack, with_report)
    assert held["adapter"]["loss"] == pytest.approx(valid[-1], rel=1e-5)
    assert told["overfitting"]["last_loss"] == pytest.approx(valid[-1])
    assert [s["adapter"] for s in told["samples"]] == ["cat dog mat"] * 3
    assert told["spectrum"]["rank"] == 8
    assert "no quality report" in stack("quality", plain, code=1).stderr
    said = stack("quality", with_report).stdout
    assert "rank" in said
    assert "on 8 validation examples" in said
    for job in (plain, with_report):
        stack("fetch", job, "-o", job)
    one, other = (
        (stack.folder / job / "adapter_model.safetensors").read_bytes()
        for job in (plain, with_report)
    )
    assert one == other
    assert (stack.folder / with_report / "quality.json").is_file()
    assert stack.json("verify", with_report)["ok"]
    stack("merge", with_report, "-o", "model")
    assert (stack.folder / "model" / "model.safetensors").is_file()
    assert "not empty" in stack("merge", with_report, "-o", "model", code=2).stderr
    assert stack.json("resize", with_report, "--rank", "4", "-o", "four")["rank"] == 4
    back = stack.json("extract", "tiny", "model", "--rank", "8", "-o", "back")
    assert back["share"] > 0.999


def points(stack, job_id):
    """A job's validation losses, as TensorBoard reads them."""
    told = stack("tensorboard", job_id, "-o", "tb")
    assert job_id in told.stdout
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(stack.folder / "tb" / job_id))
    read.Reload()
    return [event.value for event in read.Scalars("loss/validation")]


def test_ctrl_c_leaves_a_job_running_until_it_is_cancelled(stack):
    file = write(stack.folder, "slow.jsonl", "".join(
        json.dumps({"prompt": a, "completion": f" {b}"}) + "\n" for a in WORDS for b in WORDS
    ))  # fmt: skip
    following = stack.start("submit", file, "--base", "tiny", "--epochs", "50")
    said = ""
    while "Fine-tuning job started" not in said:
        said += following.stderr.readline()
    following.send_signal(signal.SIGINT)
    out, err = following.communicate(timeout=30)
    assert (following.returncode, out) == (0, "")
    assert "detached; the job goes on. manylora watch ftjob-" in err
    job = err.split("manylora watch ")[1].strip()
    assert stack.json("show", job)["status"] == "running"
    assert "1 job needs" in stack("base", "remove", "tiny", code=1).stderr
    assert stack("cancel", job).stdout == ""
    assert stack.json("show", job)["status"] == "cancelled"
    assert "cancelled already" in stack("cancel", job, code=1).stderr
    stack("wait", job, code=103)
    stack("watch", job, code=103)
    assert "it is cancelled" in stack("fetch", job, "-o", "x", code=1).stderr


def test_a_store_that_dies_does_not_lose_an_upload(stack):
    os.kill(stack.processes()["seaweed"]["pid"], signal.SIGKILL)
    file = write(stack.folder, "fresh.jsonl", LINE * 9)
    job = stack.json("submit", file, "--base", "tiny", "--epochs", "1", "-d")
    stack("wait", job["id"])


def test_nothing_is_left_of_an_up_that_was_interrupted(cli):
    assert "nothing is up" in cli("status", code=6).stderr
    starting = cli.start("up", "-d")
    assert "starting PostgreSQL" in starting.stderr.readline()
    starting.send_signal(signal.SIGINT)
    starting.communicate(timeout=60)
    assert starting.returncode == 130
    assert below(cli.home) == []
    assert cli.json("status", code=6)["processes"] == []


def test_a_port_that_is_taken_is_named_once(cli):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = cli("up", "-d", code=1, MANYLORA_API_PORT=str(port))
    assert done.stderr.count(f"port {port} is taken") == 1
    assert below(cli.home) == []


def test_help_loads_nothing_heavy():
    """What `--help` imports decides how soon it answers."""
    probe = (
        "import sys; sys.argv = ['manylora', '--help']\n"
        "from manylora.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "submit" in done.stdout
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "click" in loaded
    heavy = {"torch", "transformers", "numpy", "sqlalchemy", "boto3", "celery", "fastapi", "httpx2"}
    assert not loaded & heavy
