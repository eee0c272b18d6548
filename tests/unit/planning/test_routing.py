import pytest

from msm.planning.routing import (
    Endpoint,
    desired_split,
    effective_split,
    plan_service,
    resolve_version,
)
from msm.resources.meta import Meta
from msm.resources.serving import (
    Mirror,
    Model,
    ModelSpec,
    ModelStatus,
    SplitEntry,
    Sticky,
    Traffic,
    VersionKey,
    VersionSpec,
    VersionStatus,
)


def a_split(**weights: int) -> tuple[SplitEntry, ...]:
    return tuple(SplitEntry(version=version, weight=weight) for version, weight in weights.items())


def a_model(*versions: str, namespace: str = "default", status: ModelStatus | None = None, **spec: object) -> Model:
    return Model(
        metadata=Meta(name="iris", namespace=namespace, generation=3),
        spec=ModelSpec(versions=tuple(VersionSpec(name=v, uri=f"file:///{v}") for v in versions), **spec),
        status=status,
    )


def a_status(traffic: tuple[SplitEntry, ...] = (), **phases: str) -> ModelStatus:
    return ModelStatus(versions={v: VersionStatus(phase=p) for v, p in phases.items()}, traffic=traffic)


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (a_model("v1", "v2"), a_split(v2=100)),
        (a_model("v1", "v2", aliases={"stable": "v1"}), a_split(v1=100)),
        (a_model("v1", "v2", traffic=Traffic(split=a_split(v1=100, v2=0))), a_split(v1=100)),
        (a_model("v1", "v2", traffic=Traffic(split=a_split(v1=60, v2=40))), a_split(v1=60, v2=40)),
    ],
    ids=["newest", "stable alias", "weight 0 is not in it", "declared"],
)
def test_the_desired_split_is_declared_or_stable_or_the_newest(model: Model, wanted: tuple[SplitEntry, ...]):
    assert desired_split(model) == wanted


def test_a_split_is_taken_once_all_its_versions_are_valid():
    model = a_model("v1", "v2", status=a_status(a_split(v1=100), v1="Valid", v2="Valid"))
    assert effective_split(model).split == a_split(v2=100)
    assert effective_split(model).reason == "as declared"


@pytest.mark.parametrize("phase", ["Pending", "Fetching", "Probing", "Failed"])
def test_a_version_that_is_not_valid_takes_no_traffic_from_the_one_in_force(phase: str):
    model = a_model("v1", "v2", status=a_status(a_split(v1=100), v1="Valid", v2=phase))
    decision = effective_split(model)
    assert decision.split == a_split(v1=100)
    assert decision.reason == "version v2 is not valid yet: the split in force stays"


def test_without_a_split_in_force_the_desired_one_is_taken_so_that_requests_learn_the_reason():
    assert effective_split(a_model("v1")).split == a_split(v1=100)
    model = a_model("v1", "v2", status=a_status(v1="Failed"))
    assert effective_split(model).split == a_split(v2=100)


def test_a_split_in_force_over_a_removed_version_does_not_stay():
    model = a_model("v2", "v3", status=a_status(a_split(v1=100), v2="Valid", v3="Failed"))
    assert effective_split(model).split == a_split(v3=100)


def test_the_plan_carries_all_that_the_proxy_needs():
    model = a_model(
        "v1",
        "v2",
        namespace="team",
        aliases={"stable": "v1", "canary": "v2"},
        traffic=Traffic(
            split=a_split(v1=90, v2=10),
            sticky=Sticky(header="x-user"),
            mirror=Mirror(version="v2", percent=5),
        ),
        idempotent=False,
        timeout_seconds=4,
    )
    one = VersionKey("team", "iris", "v1")
    plan = plan_service(model, {one: (Endpoint("w0", "w0.sock"),)})
    assert (plan.service, plan.revision, plan.split) == ("team/iris", 3, a_split(v1=90, v2=10))
    assert plan.aliases == (("canary", "v2"), ("stable", "v1"))
    assert (plan.sticky_header, plan.idempotent, plan.timeout_s) == ("x-user", False, 4)
    assert plan.mirror is not None
    assert (plan.mirror.version, plan.mirror.percent) == ("v2", 5)
    assert [route.warm for route in plan.versions] == [True, False]


@pytest.mark.parametrize(
    ("ready", "touched", "warm"), [((), False, False), (("v1",), True, False), (("v1", "v2"), True, True)]
)
def test_a_service_is_warm_when_every_version_of_the_split_has_a_copy(
    ready: tuple[str, ...], touched: bool, warm: bool
):
    model = a_model("v1", "v2", traffic=Traffic(split=a_split(v1=50, v2=50)))
    copies = {VersionKey("default", "iris", v): (Endpoint("w0", "s"),) for v in ready}
    plan = plan_service(model, copies)
    assert (plan.touched, plan.warm) == (touched, warm)


def test_a_request_needs_the_versions_of_the_split_or_the_one_it_names():
    model = a_model("v1", "v2", aliases={"old": "v1"}, traffic=Traffic(split=a_split(v1=50, v2=50)))
    assert resolve_version(model, None) == ("v1", "v2")
    assert resolve_version(model, "v1") == ("v1",)
    assert resolve_version(model, "old") == ("v1",)
    assert resolve_version(model, "v9") is None


def test_a_version_key_is_its_text_and_back():
    key = VersionKey("team", "iris", "v1")
    assert VersionKey.parse(str(key)) == key
    assert str(key.model_key) == "model/team/iris"
