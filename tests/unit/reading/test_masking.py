"""Masking: no credentials of any kind of URL are shown, and nothing else is hidden."""

import pytest

from safejax._src.reading.masking import masked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@host/w?v=1", "https://…@host/w?v=1"),
        ("https://token@host/w", "https://…@host/w"),
        ("s3://bucket/w@main.safetensors", "s3://bucket/w@main.safetensors"),
        ("hf://owner/name@main/w", "hf://owner/name@main/w"),
        (
            "https://h/w?X-Amz-Algorithm=A&X-Amz-Credential=K%2F1&X-Amz-Signature=ab12&x=1",
            "https://h/w?X-Amz-Algorithm=A&X-Amz-Credential=…&X-Amz-Signature=…&x=1",
        ),
        ("https://h/w?sv=2024&sig=a%2Bb%3D&se=1", "https://h/w?sv=2024&sig=…&se=1"),
        ("https://h/w?Policy=p&Signature=s&Key-Pair-Id=k", "https://h/w?Policy=…&Signature=…&Key-Pair-Id=k"),
        ("https://h/w?GoogleAccessId=a&Expires=1&Signature=s", "https://h/w?GoogleAccessId=a&Expires=1&Signature=…"),
        ("https://h/o?uploadType=resumable&upload_id=u&n=1", "https://h/o?uploadType=resumable&upload_id=…&n=1"),
        ("https://h/w?AWSAccessKeyId=a&Signature=s", "https://h/w?AWSAccessKeyId=…&Signature=…"),
        ("404, url='https://h/w?token=t'", "404, url='https://h/w?token=…'"),
        ("(URL('https://h/w?access_token=t&x=1'))", "(URL('https://h/w?access_token=…&x=1'))"),
        ("https://h/model.index.json?download=true", "https://h/model.index.json?download=true"),
        ("/a/key=value/w.safetensors", "/a/key=value/w.safetensors"),
    ],
)  # fmt: skip
def test_what_is_shown(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown
