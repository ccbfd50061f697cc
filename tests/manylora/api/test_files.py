"""Files that share their bytes: no delete takes what another file needs."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np


def test_deleting_one_of_two_files_with_the_same_bytes_leaves_the_other(http, dataset):
    client = http()
    first, second = dataset(client), dataset(client)
    assert client.delete(f"/v1/files/{first}").json()["deleted"]
    url = f"/v1/files/{second}/content"
    assert client.get(url, follow_redirects=True).status_code == 200
    assert client.delete(f"/v1/files/{second}").json()["deleted"]
    assert client.get(url).status_code == 404


def test_uploading_while_the_same_bytes_are_deleted_loses_none(http, dataset):
    client = http()

    def there_and_back(_):
        kept = dataset(client)
        client.delete(f"/v1/files/{dataset(client)}")
        return kept

    with ThreadPoolExecutor(4) as pool:
        kept = list(pool.map(there_and_back, range(12)))
    for gone in kept[1:]:
        client.delete(f"/v1/files/{gone}")
    answer = client.get(f"/v1/files/{kept[0]}/content", follow_redirects=True)
    assert answer.status_code == 200


def test_files_come_in_pages_both_ways(http, dataset):
    client = http()
    made = [dataset(client, name=f"{i}.jsonl") for i in range(3)]
    for order, wanted in (("asc", made), ("desc", made[::-1])):
        page = client.get("/v1/files", params={"order": order, "limit": 2}).json()
        assert [file["id"] for file in page["data"]] == wanted[:2]
        assert page["has_more"]
        rest = {"order": order, "limit": 2, "after": page["last_id"]}
        page = client.get("/v1/files", params=rest).json()
        assert [file["id"] for file in page["data"]] == wanted[2:]
    assert client.get("/v1/files?purpose=batch").json()["data"] == []


def test_arrays_are_checked_as_they_come(http):
    client = http()

    def send(name, **arrays):
        body = io.BytesIO()
        np.savez(body, **arrays)
        files = {"file": (name, body.getvalue())}
        return client.post("/v1/files", data={"purpose": "fine-tune"}, files=files)

    x, y = np.zeros((3, 2)), np.zeros((3, 1))
    made = send("good.npz", x=x, y=y)
    assert made.status_code == 200
    url = f"/v1/files/{made.json()['id']}/content"
    assert ".npz" in client.get(url, follow_redirects=False).headers["location"]
    refused = send("bad.npz", x=x, y=y[:2])
    assert refused.status_code == 400
    assert "3 examples in x and 2 in y" in refused.json()["error"]["message"]
    assert send("bad.safetensors", x=x, y=y).status_code == 400
