"""Demand: heavy-tailed and always the same, and traces refused by the line."""

import math

import pytest

from manylora.errors import UsageError
from scheduler.forecast.demand import generate, read

GOOD = """time,tenant,seconds,priority,deadline,weight
20,b,5,,,
10,a,30,2,90,3

0.5,b,1e2,-1,,
"""


def test_a_trace_is_read_in_order_of_time():
    found = read(GOOD.splitlines(keepends=True))
    assert list(found.times) == [0.5, 10.0, 20.0]
    assert [found.names[t] for t in found.tenants] == ["b", "a", "b"]
    assert list(found.seconds) == [100.0, 30.0, 5.0]
    assert list(found.priorities) == [-1, 2, 0]
    assert list(found.deadlines) == [math.inf, 90.0, math.inf]
    assert found.weights == {found.names.index("a"): 3.0}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1: the header lacks time, tenant, seconds"),
        ("time,tenant\n1,a", "line 1: the header lacks seconds"),
        ("time,tenant,seconds,colour\n1,a,1,red", "line 1: the header has colour"),
        ("time,tenant,seconds\n1,a,2\n2,,3", "line 3: tenant is missing"),
        ("time,tenant,seconds\n1,a,2\n,a,3", "line 3: time is missing"),
        ("time,tenant,seconds\n1,a", "line 2: 2 values for 3 columns"),
        ("time,tenant,seconds\nsoon,a,3", "line 2: time 'soon' is not a number"),
        ("time,tenant,seconds\n1,a,0", "line 2: seconds 0 must be finite and above 0"),
        ("time,tenant,seconds\n-1,a,1", "line 2: time -1 must be finite and at least 0"),
        ("time,tenant,seconds\nnan,a,1", "line 2: time nan"),
        ("time,tenant,seconds,weight\n1,a,1,0", "line 2: weight 0 must be finite and above 0"),
        ("time,tenant,seconds,weight\n1,a,1,2\n2,a,1,3", "line 3: a had another weight before"),
        ("time,tenant,seconds,deadline\n9,a,1,8", "line 2: deadline 8 is before its job, at 9"),
        ("time,tenant,seconds,priority\n1,a,1,500", "line 2: priority 500"),
        ("time,tenant,seconds\n\n", "the trace has no jobs"),
    ],
)
def test_a_trace_with_holes_is_refused_by_its_line(text, told):
    with pytest.raises(UsageError) as refused:
        read(text.splitlines(keepends=True))
    assert refused.value.message.startswith(told)


def test_the_same_seed_is_the_same_demand_and_few_want_most():
    given = {"tenants": 200, "jobs": 5000, "days": 3.0, "mean": 100.0, "flood": 50}
    one, two = generate(4, **given), generate(4, **given)
    assert (one.times, one.tenants, one.seconds) == (two.times, two.tenants, two.seconds)
    assert generate(5, **given).seconds != one.seconds
    assert len(one) == 5050
    assert list(one.times) == sorted(one.times)
    by_tenant = sorted((list(one.tenants).count(t) for t in range(200)), reverse=True)
    assert sum(by_tenant[:20]) > 0.4 * 5000
    assert 60.0 < sum(one.seconds) / len(one) < 160.0
