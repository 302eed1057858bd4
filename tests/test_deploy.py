"""What is in deploy/: each file by the tools made for it, dashboard and alerts by a real Prometheus."""

from __future__ import annotations

import copy
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose
import kubernetes_validate
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from typer.main import get_command

from pipeline.cli import app
from pipeline.metrics.catalog import CATALOG
from pipeline.metrics.observer import Observer
from pipeline.run import RunConfig, prepare, run
from pipeline.sinks import OutputOptions
from pipeline.stages import SourceReport
from pipeline.view import ViewConfig, start_view
from tests import media
from tests.cameras import until
from tests.fake_hub import FakeHub, numbered
from tests.kuberay import RayJob
from tests.prometheus import Prometheus, has_prometheus, prometheus

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
KUBERNETES = "1.31"
RULES = DEPLOY / "prometheus" / "rules" / "roadmask.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "roadmask.json"
GENERATOR = DEPLOY / "grafana" / "dashboard.py"
TOKEN = "a token of some length"

needs_prometheus = pytest.mark.skipif(
    not has_prometheus(), reason="Prometheus is not here (Debian: prometheus)"
)
needs_kustomize = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")


def tool(name: str) -> str:
    """A command that came with a package of the extra `deploy`."""
    return str(Path(sys.executable).with_name(name))


def output(*command: str | Path, **settings: Any) -> str:
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **settings,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Images and compose.


def test_the_dockerfile_is_clean() -> None:
    output(tool("hadolint"), DEPLOY / "Dockerfile")


def test_images_run_as_nobody_special_and_have_what_they_copy() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for target in ("cpu", "cuda"):
        stage = re.split(r"^FROM ", text, flags=re.MULTILINE)
        last = next(part for part in stage if part.partition("\n")[0].endswith(f" AS {target}"))
        assert "USER 10001:10001" in last.splitlines()[-1:] or "USER 10001:10001" in last
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    for line in re.findall(r"^COPY (?!--)(.+)", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (DEPLOY.parent / source).exists()
            assert f"!{source}" in ignored


def composed(**environment: str) -> subprocess.CompletedProcess[str]:
    binary = Path(compose.__file__).with_name("docker-compose")
    command = [str(binary), "-f", str(DEPLOY / "compose.yaml"), "config", "--format", "json"]
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=clean | environment
    )


def test_compose_takes_its_file() -> None:
    done = composed(ROADMASK_VIEW_TOKEN=TOKEN, RAY_AUTH_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert services.keys() == {"head", "worker", "camera", "live", "prometheus", "grafana"}
    for name, service in services.items():
        published = [port.get("host_ip") for port in service.get("ports", ())]
        assert set(published) <= {"127.0.0.1"}, f"{name} is open to other machines"
        for volume in service.get("volumes", ()):
            assert volume["type"] != "bind" or Path(volume["source"]).exists(), volume
    for name in ("head", "worker", "live"):
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("missing", ["ROADMASK_VIEW_TOKEN", "RAY_AUTH_TOKEN"])
def test_compose_wants_secrets(missing: str) -> None:
    given = dict.fromkeys({"ROADMASK_VIEW_TOKEN", "RAY_AUTH_TOKEN"} - {missing}, TOKEN)
    refused = composed(**given)
    assert refused.returncode != 0
    assert missing in refused.stderr


# Kubernetes.


def base() -> list[dict[str, Any]]:
    folder = DEPLOY / "kubernetes" / "base"
    files = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert sorted([*files, "kustomization.yaml"]) == sorted(path.name for path in folder.iterdir())
    return [one for name in files for one in yaml.safe_load_all((folder / name).read_text())]


def overlay() -> list[dict[str, Any]]:
    folder = DEPLOY / "kubernetes" / "overlays" / "cpu"
    return list(yaml.safe_load_all(output("kubectl", "kustomize", folder)))


def of_kind(resources: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [resource for resource in resources if resource["kind"] == kind]


def pods(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Templates of every pod there will be."""
    found = [one["spec"]["template"] for one in of_kind(resources, "Deployment")]
    for job in of_kind(resources, "RayJob"):
        found += RayJob.model_validate(job).spec.rayClusterSpec.pods()
    return found


def check_resources(resources: list[dict[str, Any]]) -> None:
    """By Kubernetes' own schema, strictly; KubeRay's by the fields it has, their pods as pods."""
    for resource in resources:
        if resource["kind"] != "RayJob":
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    for number, template in enumerate(pods(resources)):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": f"pod{number}"},
               "template": template}  # fmt: skip
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_manifests_by_the_schema_of_kubernetes() -> None:
    check_resources(base())


def test_the_check_finds_mistakes() -> None:
    resources = base()
    wrong = copy.deepcopy(of_kind(resources, "Deployment")[0])
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        check_resources([wrong])
    job = copy.deepcopy(of_kind(resources, "RayJob")[0])
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(ValueError, match="maxReplica"):
        check_resources([job])


def test_pods_have_probes_limits_and_no_privileges() -> None:
    for template in pods(base()):
        assert template["spec"]["securityContext"]["runAsUser"] == 10001
        for container in template["spec"]["containers"]:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert probe in container
            limits, requests = (container["resources"][kind] for kind in ("limits", "requests"))
            assert limits["memory"]
            assert limits["cpu"]
            assert limits.get("nvidia.com/gpu") == requests.get("nvidia.com/gpu")
            secured = container["securityContext"]
            assert secured["runAsNonRoot"]
            assert not secured["allowPrivilegeEscalation"]
            assert secured["capabilities"] == {"drop": ["ALL"]}


def test_cameras_and_the_token_are_secrets() -> None:
    resources = base()
    secrets = {one["metadata"]["name"]: one["stringData"] for one in of_kind(resources, "Secret")}
    used: dict[str, dict[str, Any]] = {}  # a command, and the container that it runs in
    for deployment in of_kind(resources, "Deployment"):
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        used[" ".join(container["args"])] = container
    for job in of_kind(resources, "RayJob"):
        if " live " in job["spec"]["entrypoint"]:
            head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
            used[job["spec"]["entrypoint"]] = head["spec"]["containers"][0]
    assert len(used) == 2
    for command, container in used.items():
        given = {key for one in container["envFrom"] for key in secrets[one["secretRef"]["name"]]}
        assert {"FRONT_URL", "REAR_URL", "ROADMASK_VIEW_TOKEN"} <= given
        assert set(re.findall(r"\$\(?(\w+)", command)) == {"FRONT_URL", "REAR_URL"}
        assert "rtsp://" not in command


def test_nobody_comes_in_or_goes_out_by_default() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(base(), "NetworkPolicy")}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    metrics = policies["metrics"]["ingress"][0]["ports"]
    assert {port["port"] for port in metrics} == {8080, 8000, 9400}


@needs_kustomize
def test_the_overlay_takes_the_gpus_away() -> None:
    resources = overlay()
    check_resources(resources)
    assert len(resources) == len(base())
    assert all(one["metadata"]["namespace"] == "roadmask" for one in of_kind(resources, "RayJob"))
    text = json.dumps(resources)
    assert "nvidia" not in text
    assert "roadmask:cuda" not in text


def test_ray_reads_the_autoscaling_of_the_job() -> None:
    from ray.autoscaler._private.kuberay import autoscaling_config
    from ray.autoscaler._private.util import validate_config

    for job in of_kind(base(), "RayJob"):
        assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
        resource = {"metadata": {"name": "batch", "namespace": "roadmask"},
                    "spec": job["spec"]["rayClusterSpec"]}  # fmt: skip
        derived = autoscaling_config._derive_autoscaling_config_from_ray_cr(resource)
        validate_config(derived)
        workers = derived["available_node_types"]["gpu"]
        assert workers["resources"].items() >= {"CPU": 8, "GPU": 1}.items()
        assert workers["max_workers"] == 16
        assert derived["available_node_types"]["headgroup"]["resources"]["CPU"] == 0


def test_ray_reads_the_cluster_of_machines() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    given = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
    prepared = prepare_config(copy.deepcopy(given))
    validate_config(prepared)
    assert prepared["max_workers"] == len(given["provider"]["worker_ips"])


# Commands in all these files are ones that the program has.


def commands() -> list[list[str]]:
    """Every `roadmask ...` in deploy/, as its words; containers' arguments too."""
    found: list[list[str]] = []
    for path in sorted(DEPLOY.rglob("*")):
        if path.suffix in (".yaml", ".yml", ".md"):
            text = re.sub(r"\\\n\s*#?\s*|\n {4,}#? *(?=--)", " ", path.read_text())
            lines = re.findall(r"roadmask ((?:run|live|plan|status|bench) [^\n`]*)", text)
            found += [shlex.split(re.split(r"\s#", line)[0].rstrip("'")) for line in lines]
    for deployment in of_kind(base(), "Deployment"):
        found.append(deployment["spec"]["template"]["spec"]["containers"][0]["args"])
    live = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["live"]
    return [*found, live["command"]]


def test_commands_and_their_options_exist() -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    found = commands()
    assert {words[0] for words in found} >= {"run", "live", "plan", "status"}
    for name, *words in found:
        options = {flag for parameter in known[name].params for flag in parameter.opts}
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in options, f"{name} {word}"


# Metrics: dashboard, rules, Prometheus.


def expressions() -> list[tuple[str, str]]:
    """Titles and queries of the dashboard's panels."""
    found = json.loads(DASHBOARD.read_text())
    return [
        (panel["title"], target["expr"])
        for panel in found["panels"]
        for target in panel.get("targets", ())
    ]


def concrete(expression: str, window: str = "5m") -> str:
    """A dashboard's query as Grafana would send it."""
    for name in ("job", "instance", "stream"):
        expression = expression.replace(f"${name}", ".*")
    return expression.replace("$__rate_interval", window)


def rule_expressions() -> dict[str, str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def test_only_names_of_the_catalogue_are_used() -> None:
    known = {name for instrument in CATALOG.values() for name in instrument.series_names}
    queries = [expression for _, expression in expressions()]
    variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
    queries += [variable["query"] for variable in variables]
    used = set(re.findall(r"\broadmask_\w+", " ".join([*queries, *rule_expressions().values()])))
    assert used <= known
    labels = {label for found in CATALOG.values() for label in found.labels}
    for by in re.findall(r"by \(([^)]*)\)", " ".join(queries)):
        assert {part.strip() for part in by.split(",")} <= labels | {"le", "job", "instance"}


def test_the_dashboard_is_what_its_builder_writes_and_grafana_reads() -> None:
    made: str = runpy.run_path(str(GENERATOR))["make"]()
    assert made == DASHBOARD.read_text(), f"run {GENERATOR} again"
    read = Dashboard.from_json(json.loads(made))
    assert json.loads(JSONEncoder(sort_keys=True).encode(read)) == json.loads(made)
    titles = [title for title, _ in expressions()]
    assert len(titles) > 20
    provided = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    )["datasources"]
    uids = set(re.findall(r'"type": "prometheus",\s*"uid": "(\w+)"', made))
    assert uids == {source["uid"] for source in provided}


@needs_prometheus
def test_rules_fire_when_they_should() -> None:
    output("promtool", "check", "rules", RULES)
    output("promtool", "test", "rules", DEPLOY / "prometheus" / "rules_test.yml")


@needs_prometheus
def test_the_configuration_is_prometheus_own(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY / "prometheus", tmp_path / "prometheus")
    config = tmp_path / "prometheus" / "prometheus.yml"
    (tmp_path / "token").write_text(TOKEN)
    config.write_text(
        config.read_text().replace("/run/secrets/view_token", str(tmp_path / "token"))
    )
    output("promtool", "check", "config", config)


def scraping(live: str, run_at: str, token: Path) -> dict[str, Any]:
    """The configuration of deploy/, with addresses of this test in place of the cluster's."""
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    jobs["live"]["authorization"]["credentials_file"] = str(token)
    jobs["live"]["static_configs"] = [{"targets": [live]}]
    jobs["run"]["static_configs"] = [{"targets": [run_at]}]
    del jobs["ray"]["dns_sd_configs"]
    return config


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has read a run over files and the view of two cameras for a few seconds."""
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "token").write_text(TOKEN)
    media.write_moving_clip(folder / "clip.mp4", 30, seed=1)
    media.write_moving_clip(folder / "other.mp4", 20, seed=2)
    (folder / "broken.mp4").write_bytes(b"no video")
    sources = tuple(str(folder / f"{name}.mp4") for name in ("clip", "other", "broken"))
    options = OutputOptions(labels="none", color=False)
    hub = FakeHub(numbered())
    for name in ("front", "rear"):
        hub.add(f"rtsp://me:secret@h.example/{name}", name)
    said: list[str] = []
    with (
        start_view(hub, ViewConfig(port=0, token=TOKEN)) as view,
        Observer(lambda: len(sources), None, "127.0.0.1:0", say=said.append) as observer,
        prometheus(
            folder / "prometheus",
            scraping(address(view.url), address(said[0].split()[-1]), folder / "token"),
            RULES,
        ) as found,
    ):
        found.wait_for("roadmask_sources_left == 3")
        stop = threading.Event()
        runs = threading.Thread(target=_run_slowly, args=(sources, folder, options, observer, stop))
        runs.start()
        try:
            found.wait_for('increase(roadmask_frames_total{stage="write"}[1m]) > 0')
            found.wait_for('increase(roadmask_frames_dropped_total{job="live"}[1m]) > 0')
            yield found
        finally:
            stop.set()
            runs.join()
    hub.close()


def _run_slowly(
    sources: tuple[str, ...],
    folder: Path,
    options: OutputOptions,
    observer: Observer,
    stop: threading.Event,
) -> None:
    """A real run whose events are let through one by one, so that Prometheus sees it at work."""
    plan = prepare(
        RunConfig(sources, folder / "out", options, engine="counting", placement="inline")
    )
    for event in run(plan):
        observer.update(event)
        if not isinstance(event, SourceReport):
            stop.wait(1.0)


# What a test without a GPU, without Ray's own exporter and without a failing network cannot show.
NOT_HERE = {"Memory of the device", "Cores at work, by Ray"}


@needs_prometheus
def test_every_panel_shows_data_from_a_real_run(scraped: Prometheus) -> None:
    empty = set()
    for title, expression in expressions():
        deadline = time.monotonic() + 30
        query = concrete(expression, "1m")
        while not (found := scraped.query(query)) and title not in NOT_HERE:
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        if not found:
            empty.add(title)
        for sample in found:
            assert not re.search(r"secret|token", json.dumps(sample))
    assert empty <= NOT_HERE


@needs_prometheus
def test_the_figures_are_those_of_the_run(scraped: Prometheus) -> None:
    frames = scraped.wait_for('sum(roadmask_frames_total{job="run", stage="write"}) == 50')
    assert float(frames[0]["value"][1]) == 50
    failed = scraped.wait_for('roadmask_sources_total{outcome="failed"} == 1')
    assert failed[0]["metric"]["job"] == "run"
    # A scrape that took too long leaves nothing until the next.
    scraped.wait_for('count(roadmask_stream_state{job="live", state="live"} == 1) == 2')


@needs_prometheus
def test_prometheus_has_loaded_the_rules_and_they_work(scraped: Prometheus) -> None:
    wanted = rule_expressions()
    deadline = time.monotonic() + 60
    while True:
        groups = scraped.api("rules")["groups"]
        rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
        if rules.keys() == wanted.keys() and all(rule["health"] == "ok" for rule in rules.values()):
            break
        assert time.monotonic() < deadline, rules
        time.sleep(0.5)
    # A source has failed, and that is told at once; cameras and engine are well, but for a scrape that
    # took too long: until the next one the view seems to be down.
    scraped.wait_for('ALERTS{alertname="RoadmaskSourcesFailed", alertstate="firing"}')
    scraped.wait_for('absent(ALERTS{alertname=~"RoadmaskCamera.*|RoadmaskLiveDown"})')

    def health() -> set[tuple[str, str]]:
        targets = scraped.api("targets")["activeTargets"]
        return {(one["scrapePool"], one["health"]) for one in targets}

    until(lambda: health() == {("live", "up"), ("run", "up")})


def address(url: str) -> str:
    """HOST:PORT of a URL."""
    return url.split("/")[2]
