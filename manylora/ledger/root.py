"""The root of all tables, and how a type of Python is kept by PostgreSQL."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

from sqlalchemy import BigInteger, DateTime, Float, Text
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.orm import DeclarativeBase

Json = dict[str, Any]


class Table(DeclarativeBase):
    """The root of all tables."""

    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy's own protocol)
        dt.datetime: DateTime(timezone=True),
        uuid.UUID: UUID(as_uuid=True),
        Json: JSONB,
        list[Json]: JSONB,
        list[str]: JSONB,
        int: BigInteger,
        float: Float,
        str: Text,
    }
