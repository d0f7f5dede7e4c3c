"""Metrics: bounded series, no personal labels."""

import pytest

from pds.metrics import MAX_SERIES, Metrics


def test_counters_gauges_and_histograms_are_rendered():
    metrics = Metrics()
    metrics.counter("requests", "Requests.", ["method"]).inc(method="getRecord")
    metrics.gauge("subscribers", "Subscribers.").set(3)
    with metrics.histogram("request_seconds", "Seconds.", ["method"]).time(method="getRecord"):
        pass
    text, content_type = metrics.render()
    assert b'pds_requests_total{method="getRecord"} 1.0' in text
    assert b"pds_subscribers 3.0" in text
    assert b'pds_request_seconds_count{method="getRecord"} 1.0' in text
    assert content_type.startswith("text/plain")


def test_same_name_is_the_same_metric_and_two_servers_do_not_share():
    metrics = Metrics()
    metrics.counter("a", "A.").inc(2)
    assert metrics.counter("a", "A.").value() == 2
    assert Metrics().counter("a", "A.").value() == 0
    with pytest.raises(ValueError, match="no gauge"):
        metrics.gauge("a", "A.")


@pytest.mark.parametrize("label", ["did", "handle", "email", "ip"])
def test_labels_that_name_people_are_refused(label):
    with pytest.raises(ValueError, match="name people"):
        Metrics().counter("x", "X.", [label])


def test_number_of_series_is_bounded():
    metrics = Metrics()
    counter = metrics.counter("x", "X.", ["method"])
    for number in range(MAX_SERIES + 50):
        counter.inc(method=f"m{number}")
    assert metrics.render()[0].count(b"pds_x_total{") == MAX_SERIES + 1
    assert counter.value(method="other") == 50


def test_a_series_that_is_kept_counts_with_the_others():
    metrics = Metrics()
    counter = metrics.counter("x", "X.", ["method", "status"])
    add_one = counter.series("getRecord", 200)
    add_one()
    counter.inc(method="getRecord", status=200)
    add_one()
    assert counter.value(method="getRecord", status=200) == 3
    histogram = metrics.histogram("x_seconds", "Seconds.", ["method"])
    histogram.series("getRecord")(0.25)
    assert b'pds_x_seconds_sum{method="getRecord"} 0.25' in metrics.render()[0]
    with pytest.raises(ValueError, match="labels must be"):
        counter.series("getRecord")
    with pytest.raises(ValueError, match="labels must be"):
        histogram.series()


def test_wrong_labels_are_refused():
    counter = Metrics().counter("x", "X.", ["method"])
    with pytest.raises(ValueError, match="labels must be"):
        counter.inc()
    with pytest.raises(KeyError):
        counter.inc(verb="x")


def test_gauge_function_and_process_metrics():
    metrics = Metrics()
    metrics.gauge("queue", "Queue.").set_function(lambda: 7)
    metrics.add_process_metrics()
    text = metrics.render()[0]
    assert b"pds_queue 7.0" in text
    assert b"python_info" in text
