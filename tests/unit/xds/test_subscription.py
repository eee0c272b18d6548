"""The delta protocol as a state machine: what is sent when, what counts as accepted, what a refusal does."""

from __future__ import annotations

from envoy.service.discovery.v3 import discovery_pb2

from msm.xds.names import CDS, EDS, RDS, SRDS
from msm.xds.snapshot import Change, World, versioned
from msm.xds.subscription import Stream


class Proxy:
    """The other side of a stream: answers as it is told, and remembers what it was sent."""

    def __init__(self, **resources: dict[str, bytes]) -> None:
        self.world = World()
        self.set(**resources)
        self.stream = Stream(self.world)

    def set(self, **resources: dict[str, bytes]) -> None:
        kinds = {"cds": CDS, "eds": EDS, "srds": SRDS, "rds": RDS}
        self.change(Change(versioned({kinds[name]: made for name, made in resources.items()})))

    def change(self, change: Change) -> None:
        self.world.apply(change)
        if hasattr(self, "stream"):
            self.stream.dirty(change.keys)

    def ask(self, kind: str, *names: str, known: dict[str, str] | None = None, drop: tuple[str, ...] = ()):
        request = discovery_pb2.DeltaDiscoveryRequest(
            type_url=kind,
            resource_names_subscribe=names,
            resource_names_unsubscribe=drop,
            initial_resource_versions=known or {},
        )
        return self.stream.on_request(request)

    def frames(self) -> list:
        return [discovery_pb2.DeltaDiscoveryResponse.FromString(frame) for frame in self.stream.frames()]

    def sent(self) -> list[tuple[str, list[str], list[str]]]:
        """What is sent now, all of it accepted."""
        frames = self.frames()
        for frame in frames:
            self.accept(frame)
        return [(f.type_url, sorted(r.name for r in f.resources), sorted(f.removed_resources)) for f in frames]

    def accept(self, frame):
        return self._answer(frame)

    def refuse(self, frame, reason: str):
        return self._answer(frame, reason)

    def _answer(self, frame, reason: str = ""):
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=frame.type_url, response_nonce=frame.nonce)
        if reason:
            request.error_detail.message = reason
        return self.stream.on_request(request)

    def version(self, kind: str, name: str) -> str:
        return self.world.get((kind, name)).version


def test_the_first_wildcard_is_answered_even_when_there_is_nothing():
    proxy = Proxy()
    proxy.ask(CDS)
    assert proxy.sent() == [(CDS, [], [])]
    assert proxy.sent() == []


def test_a_change_sends_only_what_changed():
    proxy = Proxy(srds={f"s{i}": b"1" for i in range(100)})
    proxy.ask(SRDS)
    assert len(proxy.sent()[0][1]) == 100
    proxy.set(srds={"s7": b"2"})
    assert proxy.sent() == [(SRDS, ["s7"], [])]
    proxy.change(Change(removes=((SRDS, "s8"),)))
    assert proxy.sent() == [(SRDS, [], ["s8"])]


def test_frames_carry_version_and_content():
    proxy = Proxy(rds={"~cold": b"\x0a\x01x"})
    proxy.ask(RDS, "~cold")
    (frame,) = proxy.frames()
    (resource,) = frame.resources
    assert (resource.version, resource.resource.type_url, resource.resource.value) == (
        proxy.version(RDS, "~cold"),
        RDS,
        b"\x0a\x01x",
    )


def test_a_name_that_is_not_there_yet_is_pending_not_removed():
    proxy = Proxy()
    proxy.ask(EDS, "later")
    assert proxy.sent() == []
    proxy.set(eds={"later": b"1", "unasked": b"1"})
    assert proxy.sent() == [(EDS, ["later"], [])]


def test_a_name_asked_for_again_is_sent_again():
    proxy = Proxy(eds={"a": b"1"})
    proxy.ask(EDS, "a")
    proxy.sent()
    proxy.ask(EDS, "a")
    assert proxy.sent() == [(EDS, ["a"], [])]


def test_what_was_unsubscribed_is_not_sent():
    proxy = Proxy(eds={"a": b"1"})
    proxy.ask(EDS, "a")
    proxy.sent()
    proxy.ask(EDS, drop=("a",))
    proxy.set(eds={"a": b"2"})
    assert proxy.sent() == []


def test_endpoints_that_go_with_their_cluster_are_never_called_removed():
    proxy = Proxy(cds={"a": b"1"}, eds={"a": b"1"})
    proxy.ask(CDS)
    proxy.sent()
    proxy.ask(EDS, "a")
    proxy.sent()
    proxy.change(Change(removes=((CDS, "a"), (EDS, "a"))))
    assert proxy.stream.accepted((EDS, "a"))
    assert proxy.sent() == [(CDS, [], ["a"])]


def test_a_changed_cluster_brings_its_endpoints_again():
    proxy = Proxy(cds={"a": b"1", "b": b"1"}, eds={"a": b"1", "b": b"1"})
    proxy.ask(CDS)
    proxy.sent()
    proxy.ask(EDS, "a", "b")
    proxy.sent()
    proxy.set(cds={"a": b"2"})
    assert proxy.sent() == [(CDS, ["a"], []), (EDS, ["a"], [])]


def test_acceptance_is_of_the_present_version():
    proxy = Proxy(srds={"a": b"1"})
    key = (SRDS, "a")
    assert not proxy.stream.accepted(key)  # nobody asked for the type yet
    proxy.ask(SRDS)
    assert not proxy.stream.accepted(key)
    (first,) = proxy.frames()
    assert not proxy.stream.accepted(key)
    proxy.set(srds={"a": b"2"})
    (second,) = proxy.frames()
    proxy.accept(first)
    assert not proxy.stream.accepted(key)
    assert proxy.accept(second)[0].keys == (key,)
    assert proxy.stream.accepted(key)


def test_a_refused_resource_is_told_and_not_sent_again_until_it_changes():
    proxy = Proxy(srds={"bad": b"1"})
    proxy.ask(SRDS)
    (frame,) = proxy.frames()
    (answer,) = proxy.refuse(frame, "it is wrong")
    assert (answer.keys, answer.refused) == (((SRDS, "bad"),), "it is wrong")
    assert proxy.stream.refusal((SRDS, "bad")) == "it is wrong"
    assert not proxy.stream.accepted((SRDS, "bad"))
    assert proxy.sent() == []
    proxy.set(srds={"bad": b"2"})
    assert proxy.sent() == [(SRDS, ["bad"], [])]
    assert proxy.stream.accepted((SRDS, "bad"))
    assert proxy.stream.refusal((SRDS, "bad")) is None


def test_one_bad_resource_in_a_batch_is_found_and_the_others_get_through():
    proxy = Proxy(srds={f"s{i}": b"1" for i in range(50)})
    proxy.ask(SRDS)
    refused, responses = [], 0
    while frames := proxy.frames():
        for frame in frames:
            responses += 1
            bad = any(resource.name == "s13" for resource in frame.resources)
            answers = proxy.refuse(frame, "bad") if bad else proxy.accept(frame)
            refused += [answer for answer in answers if answer.refused]
    assert [answer.keys for answer in refused] == [((SRDS, "s13"),)]
    assert all(proxy.stream.accepted((SRDS, f"s{i}")) for i in range(50) if i != 13)
    assert responses < 16  # a bisection, not one by one


def test_a_proxy_that_comes_back_is_sent_only_what_differs():
    proxy = Proxy(srds={"same": b"1", "changed": b"2", "new": b"1"})
    known = {"same": proxy.version(SRDS, "same"), "changed": "old", "gone": "old"}
    answers = proxy.ask(SRDS, known=known)
    assert answers[0].keys == ((SRDS, "same"),)
    assert proxy.stream.accepted((SRDS, "same"))
    assert proxy.sent() == [(SRDS, ["changed", "new"], ["gone"])]


def test_named_resources_that_are_the_same_are_not_sent_to_a_proxy_that_comes_back():
    proxy = Proxy(eds={"a": b"1", "b": b"2"})
    proxy.ask(EDS, "a", "b", known={"a": proxy.version(EDS, "a"), "b": "old"})
    assert proxy.sent() == [(EDS, ["b"], [])]


def test_on_a_young_stream_scopes_wait_for_the_endpoints_of_new_clusters():
    proxy = Proxy(cds={"a": b"1"}, eds={"a": b"1"}, srds={"s": b"1"})
    proxy.ask(CDS)
    proxy.ask(SRDS, known={"s": "cold"})
    assert proxy.sent() == [(CDS, ["a"], [])]
    assert proxy.sent() == []  # the cluster has no endpoints yet
    proxy.ask(EDS, "a")
    assert proxy.sent() == [(EDS, ["a"], [])]
    assert proxy.sent() == [(SRDS, ["s"], [])]


def test_on_a_young_stream_clusters_are_removed_after_the_scopes_that_named_them():
    proxy = Proxy(srds={"s": b"cold"})
    proxy.ask(CDS, known={"old": "1"})
    assert proxy.sent() == [(CDS, [], [])]
    proxy.ask(SRDS, known={"s": "hot"})
    assert proxy.sent() == [(SRDS, ["s"], [])]
    assert proxy.sent() == [(CDS, [], ["old"])]


def test_a_changed_cluster_of_a_proxy_that_comes_back_does_not_hold_the_scopes_for_ever():
    proxy = Proxy(cds={"a": b"2"}, eds={"a": b"1"}, srds={"s": b"2"})
    proxy.ask(CDS, known={"a": "old"})
    assert proxy.sent() == [(CDS, ["a"], [])]
    proxy.ask(SRDS, known={"s": "old"})
    proxy.ask(EDS, "a", known={"a": proxy.version(EDS, "a")})
    assert proxy.sent() == [(EDS, ["a"], [])]
    assert proxy.sent() == [(SRDS, ["s"], [])]


def test_a_refused_cluster_does_not_hold_the_scopes():
    proxy = Proxy(cds={"a": b"1"}, eds={"a": b"1"}, srds={"s": b"1"})
    proxy.ask(CDS)
    proxy.ask(SRDS)
    (frame,) = proxy.frames()
    proxy.refuse(frame, "no")
    assert proxy.sent() == [(SRDS, ["s"], [])]
