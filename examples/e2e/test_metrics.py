"""`GET /metrics` as a Prometheus reads it: its own strict parser of OpenMetrics."""

import urllib.request

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

PATIENCE_S = 60
# The first name has every kind of character that a name may have.
ODD, PLAIN = "o0-d__d-_9-", "plain"
APP = """
name = "{name}"
[workflow]
chain = ["c-1_", "last"]
[[grain]]
name = "c-1_"
runtime = "exec"
handler = "/bin/cat"
[[grain]]
name = "last"
runtime = "exec"
handler = "/bin/cat"
"""
OF_APP, OF_GRAIN = {"app"}, {"app", "grain"}
# Type, unit and labels of what operators' rules name.
KNOWN = {
    "sandpipe_http_requests": ("counter", "", {"app", "code"}),
    "sandpipe_http_request_duration_seconds": ("histogram", "seconds", {"app", "le"}),
    "sandpipe_ready": ("gauge", "", OF_APP),
    "sandpipe_in_flight": ("gauge", "", OF_APP),
    "sandpipe_unbacked_bytes": ("gauge", "bytes", OF_APP),
    "sandpipe_unbacked_age_seconds": ("gauge", "seconds", OF_APP),
    "sandpipe_dead_letter_bytes": ("gauge", "bytes", OF_APP),
    "sandpipe_accepted": ("counter", "", OF_APP),
    "sandpipe_worker_restarts": ("counter", "", OF_APP),
    "sandpipe_redelivered": ("counter", "", OF_APP),
    "sandpipe_busy": ("counter", "", OF_APP),
    "sandpipe_late": ("counter", "", OF_APP),
    "sandpipe_connections_open": ("gauge", "", set()),
    "sandpipe_connections_accepted": ("counter", "", set()),
    "sandpipe_bus_published": ("counter", "", OF_GRAIN),
    "sandpipe_bus_pool_bytes": ("gauge", "bytes", OF_GRAIN),
    "sandpipe_bus_bytes": ("counter", "bytes", OF_GRAIN),
}
# What may not fall, by the end of the sample's name; a gauge is none of them.
RISING = ("_total", "_count", "_sum", "_bucket")


@pytest.fixture
def scrape(agent):
    serving = agent({name: APP.format(name=name) for name in (ODD, PLAIN)})

    def post(app, count):
        for number in range(count):
            status, _, body = serving.post(b"%d" % number, f"/{app}")
            assert (status, body) == (200, b"%d" % number)

    def scrape():
        url = serving.ready["url"] + "/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            media = answer.headers["content-type"]
            page = answer.read().decode()
        assert media == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        return {family.name: family for family in text_string_to_metric_families(page)}

    scrape.post = post
    return scrape


def samples(families):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }


def test_names_types_units_and_labels_are_those_that_operators_are_told_of(scrape):
    for app in (ODD, PLAIN):
        scrape.post(app, 1)
    families = scrape()
    for name, (kind, unit, labels) in KNOWN.items():
        family = families[name]
        assert (family.type, family.unit) == (kind, unit), name
        assert family.documentation.strip(), name
        for sample in family.samples:
            assert set(sample.labels) <= labels, sample
        if "app" in labels:
            # Both applications, each under its own name, in one family.
            assert {sample.labels["app"] for sample in family.samples} == {ODD, PLAIN}, name
    grains = {s.labels["grain"] for s in families["sandpipe_bus_published"].samples}
    assert grains == {"(agent)", "c-1_", "last"}
    # A name that ends like a unit has that unit.
    for name, family in families.items():
        for unit in ("seconds", "bytes"):
            assert not name.endswith(f"_{unit}") or family.unit == unit, name


def test_counters_of_two_applications_count_and_never_fall(scrape):
    scrape.post(ODD, 3)
    scrape.post(PLAIN, 5)
    first = samples(scrape())
    scrape.post(ODD, 4)
    second = samples(scrape())
    rising = [key for key in first if key[0].endswith(RISING)]
    assert len(rising) > 50
    fallen = [(key, first[key], second.get(key)) for key in rising if second[key] < first[key]]
    assert fallen == []

    def grown(name, **labels):
        key = (name, tuple(sorted(labels.items())))
        return first[key], second[key]

    assert grown("sandpipe_accepted_total", app=ODD) == (3, 7)
    assert grown("sandpipe_answered_total", app=PLAIN) == (5, 5)
    assert grown("sandpipe_http_requests_total", app=ODD, code="200") == (3, 7)
    histogram = "sandpipe_http_request_duration_seconds"
    assert grown(f"{histogram}_count", app=ODD) == (3, 7)
    assert grown(f"{histogram}_bucket", app=PLAIN, le="+Inf") == (5, 5)
    assert grown("sandpipe_bus_published_total", app=ODD, grain="(agent)") == (3, 7)
