"""Files that share their bytes: no delete takes what another file needs."""

from concurrent.futures import ThreadPoolExecutor


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
