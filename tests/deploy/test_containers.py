"""Image, compose file and Kubernetes manifests: pinned, locked down, and with settings and paths that exist."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.utils import canonicalize_name

from configs.load import load_settings
from configs.settings import Settings
from tests.test_lock import needed, pins

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINE = re.compile(r"^([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", flags=re.MULTILINE)
STAGES = re.findall(r"^FROM \S+ AS (\w[\w-]*)$", DOCKERFILE, flags=re.MULTILINE)


def tool(name: str) -> str:
    """Return the path of a program, or skip the test."""
    if (found := shutil.which(name)) is None:
        pytest.skip(f"{name} is not installed")
    return found


def image_environment() -> dict[str, str]:
    """Return what the image sets."""
    block = re.search(r"^ENV PATH=.*?[^\\]$", DOCKERFILE, flags=re.MULTILINE | re.DOTALL)
    assert block
    return dict(re.findall(r"(\w+)=(\S+)", block.group()))


@pytest.fixture
def in_container(monkeypatch):
    """Load a configuration file in the environment of the image and more: a setting that does not exist is an error."""

    def load(environment: dict[str, str], file: Path = DEPLOY / "kubernetes" / "mfmd.yaml") -> Settings:
        for name, value in (image_environment() | environment).items():
            if name.startswith("MFMD_"):
                monkeypatch.setenv(name, value)
        return load_settings(file)

    return load


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_every_package_of_an_image_is_pinned_with_hashes(target):
    text = (DEPLOY / "lock" / f"{target}.txt").read_text(encoding="utf-8")
    assert not re.sub(r"^#.*\n", "", LINE.sub("", text), flags=re.MULTILINE).strip(), "each package has hashes"
    locked = {canonicalize_name(name): version for name, version, _ in LINE.findall(text)}
    pinned, extras = pins(), PROJECT["optional-dependencies"]
    asked = {*needed([*PROJECT["dependencies"], *extras["heif"], *extras["otel"], *extras["video"]], set())}
    assert asked <= set(locked), "`deploy/lock/write.sh` writes them"
    assert {name: locked[name].split("+")[0] for name in asked} == {name: pinned[name] for name in asked}
    assert ("+cpu" in locked["torch"], "nvidia-nccl-cu13" in locked) == (target == "cpu", target == "cuda")


def test_the_image_runs_as_a_number_and_without_what_built_it():
    final = DOCKERFILE[DOCKERFILE.index(" AS runtime") :]
    assert re.search(r"^USER 10001:10001$", final, flags=re.MULTILINE)
    assert not re.search(r"pip|apt|gcc", re.sub(r"^#.*$", "", final, flags=re.MULTILINE))
    assert STAGES[-1] == "cpu", "the target of a build that names none"
    assert "cuda" in STAGES
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]+)"', final))
    assert set(labels) == {"title", "description", "licenses", "version"}
    assert (labels["version"], labels["licenses"]) == (PROJECT["version"], PROJECT["license"])
    copied = {path.split()[0] for path in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE)}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {path.replace("cpu", "*").replace("cuda", "*") for path in copied} <= allowed


def test_hadolint_finds_nothing():
    done = subprocess.run([tool("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_sets_settings_that_exist(in_container):
    settings = in_container({})
    assert (str(settings.state), str(settings.watch.folder), settings.serving.host) == ("/state", "/drop", "0.0.0.0")


def composed() -> dict[str, Any]:
    """Return the compose file with the defaults of its variables."""
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))


def test_compose_file_follows_the_schema():
    schema = pytest.importorskip("compose_spec", reason="compose-spec (PyPI) is not installed")
    schema.PyCompose.from_json(json.dumps(composed()))


def test_services_of_the_compose_file_are_locked_down_and_refer_to_what_is_there(in_container):
    services = composed()["services"]
    assert set(services) == {"daemon", "plane", "prometheus", "grafana"}
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith("./") or (DEPLOY / source).exists(), volume
    for name in ("daemon", "plane"):
        assert services[name]["read_only"] is True
        assert int(services[name]["stop_grace_period"].rstrip("s")) > 38, "requests in flight are given 38 s"
    assert services["daemon"]["build"]["target"] in STAGES
    assert services["plane"]["volumes"][0] == "state:/state:ro"
    settings = in_container(services["daemon"]["environment"])
    assert (settings.serving.enabled, settings.control.host) == (False, "0.0.0.0")


def test_prometheus_of_the_compose_file_scrapes_as_ours_does():
    services = composed()["services"]
    name = Path(services["prometheus"]["command"][0].partition("=")[2]).name
    config, ours = (
        yaml.safe_load((DEPLOY / "prometheus" / file).read_text(encoding="utf-8")) for file in (name, "prometheus.yml")
    )
    ports = {name: str(service["ports"][0]).split(":")[-1] for name, service in services.items()}
    for job, service in zip(ours["scrape_configs"], ("daemon", "plane"), strict=True):
        job["static_configs"] = [{"targets": [f"{service}:{ports[service]}"]}]
    assert config == ours
    command = [tool("promtool"), "check", "config", str(DEPLOY / "prometheus" / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_of_the_compose_file_finds_the_dashboard_and_its_source():
    grafana = composed()["services"]["grafana"]
    (mount,) = [volume for volume in grafana["volumes"] if volume.startswith("./grafana:")]
    inside = Path(mount.split(":")[1])
    folder = DEPLOY / "grafana" / Path(grafana["environment"]["GF_PATHS_PROVISIONING"]).relative_to(inside)
    found = {item.parent.name: yaml.safe_load(item.read_text(encoding="utf-8")) for item in folder.glob("*/*.yaml")}
    assert found["datasources"]["datasources"][0]["url"] == "http://prometheus:9090"
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.parent == Path(found["dashboards"]["providers"][0]["options"]["path"]) == inside
    assert (DEPLOY / "grafana" / home.name).exists()


def manifests() -> list[dict[str, Any]]:
    """Return the objects of the files that the kustomization names."""
    folder = DEPLOY / "kubernetes"
    names = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    return [item for name in names for item in yaml.safe_load_all((folder / name).read_text())]


WORKLOADS = [item for item in manifests() if item["kind"] in ("StatefulSet", "Deployment")]


def overlay(folder: Path) -> Path:
    """Write an overlay as the docs show it, but for its paths."""
    page = (ROOT / "docs" / "how-to" / "deploy.md").read_text(encoding="utf-8")
    shown = re.search(r"```\n(# kustomization.yaml\n.*?)```", page, flags=re.DOTALL)
    assert shown
    base = Path("..") / os.path.relpath(DEPLOY, folder.parent)
    (folder / "kustomization.yaml").write_text(shown[1].replace("../mfmd/deploy", str(base)))
    (folder / "mfmd.yaml").write_text("classes: camvid\nserving: {enabled: false}\n")
    return folder


def test_kubernetes_accepts_the_manifests(tmp_path):
    """Those of an overlay with the component that imports a first version."""
    build = [tool("kubectl"), "kustomize", str(overlay(tmp_path))]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = [item for item in yaml.safe_load_all(done.stdout) if not item["apiVersion"].startswith("monitoring.")]
    assert len(built) == len([item for item in manifests() if item["kind"] != "PodMonitor"]) + 2, "settings and job"
    (settings,) = [item for item in built if item["kind"] == "ConfigMap"]
    assert "camvid" in settings["data"]["mfmd.yaml"]
    assert done.stdout.count(f"name: {settings['metadata']['name']}\n") == 4, "itself, daemon, plane and job"
    (tmp_path / "built.yaml").write_text(yaml.safe_dump_all(built))
    validate = [tool("kubernetes-validate"), "--strict", "--quiet", str(tmp_path / "built.yaml")]
    done = subprocess.run(validate, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda item: item["metadata"]["name"])
def test_a_pod_is_locked_down_probed_and_scraped(workload, in_container):
    spec = workload["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["terminationGracePeriodSeconds"] > 38, "requests in flight are given 38 s"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    ports = {port["name"] for port in container["ports"]}
    assert {container[f"{kind}Probe"]["httpGet"]["port"] for kind in paths} <= ports
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert workload["spec"]["selector"]["matchLabels"] == labels
    (monitor,) = [item for item in manifests() if item["kind"] == "PodMonitor" and _selects(item, labels)]
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in ports
    assert labels[monitor["spec"]["jobLabel"]].startswith("mfmd"), "the job of the alerts"
    services = [item for item in manifests() if item["kind"] == "Service" and item["spec"]["selector"] == labels]
    assert {port["targetPort"] for item in services for port in item["spec"]["ports"]} == ports
    settings = in_container({item["name"]: item["value"] for item in container["env"]})
    assert not settings.serving.enabled, "planes are pods of their own"


def _selects(monitor: dict[str, Any], labels: dict[str, str]) -> bool:
    return monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_bash_reads_the_scripts():
    for script in (DEPLOY / "try_image.sh", DEPLOY / "lock" / "write.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True)
        assert os.access(script, os.X_OK)
