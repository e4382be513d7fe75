from pathlib import Path

import pytest

from sidrec.data.movielens import CSV_FILES, FILES, read_ml_csv, read_movielens
from sidrec.pipeline.errors import InputError

RATINGS = "userId,movieId,rating,timestamp\n1,11,4.5,964982703\n1,3,0.5,964981247\n7,11,5.0,1112486027\n7,131254,3.0,964981247\n"
MOVIES = (
    "movieId,title,genres\r\n"
    "3,Amélie (Fabuleux destin d'Amélie Poulain, Le) (2001),Comedy|Romance\r\n"
    '11,"American President, The (1995)",Comedy|Drama|Romance\r\n'
    '5,"""Great Performances"" Cats (1998)",Musical\r\n'
    "131254,Kein Bund für's Leben,(no genres listed)\r\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ratings.csv").write_text(RATINGS)
    (tmp_path / "movies.csv").write_text(
        MOVIES.replace("Amélie (Fab", '"Amélie (Fab').replace("(2001)", '(2001)"'), newline=""
    )
    return tmp_path


def test_csv_keeps_order_commas_quotes_and_encoding(folder: Path) -> None:
    raw = read_ml_csv(folder)
    assert raw.interactions.rows() == [
        ("1", "11", 964982703, 4.5),
        ("1", "3", 964981247, 0.5),
        ("7", "11", 1112486027, 5.0),
        ("7", "131254", 964981247, 3.0),
    ]
    assert raw.items.columns == ["item_id", "title", "genres", "year"]
    assert raw.items.rows() == [
        ("3", "Amélie (Fabuleux destin d'Amélie Poulain, Le) (2001)", "Comedy, Romance", "2001"),
        ("11", "American President, The (1995)", "Comedy, Drama, Romance", "1995"),
        ("5", '"Great Performances" Cats (1998)', "Musical", "1998"),
        ("131254", "Kein Bund für's Leben", None, None),
    ]


@pytest.mark.parametrize("name", [name for name, files in FILES.items() if files == CSV_FILES])
def test_every_data_set_of_csvs_has_this_reader(folder: Path, name: str) -> None:
    assert read_movielens(name, folder).items.equals(read_ml_csv(folder).items)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("ratings.csv", RATINGS.replace("userId", "user"), r"ratings\.csv has no column 'userId'"),
        ("ratings.csv", RATINGS + "7,3", r"ratings\.csv row 5, the last one, has fewer than 4 fields; .* truncated"),
        ("ratings.csv", RATINGS + "7,99,3.0,964981247\n", r"ratings\.csv row 5: user '7' took item '99'.*movies\.csv"),
        ("ratings.csv", RATINGS + "7,3,3.0,yesterday\n", r"ratings\.csv row 5.*'yesterday'"),
        ("movies.csv", MOVIES, r"movies\.csv cannot be read as csv: .*row 1 has 4 fields.*the header has 3"),
        ("movies.csv", "movieId,title,genres\n3,A,Drama\n3,B,Drama\n", r"movies\.csv: item_id '3' is in rows 1 and 2"),
    ],
)
def test_wrong_csv_is_one_sentence(folder: Path, file: str, content: str, words: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=words) as error:
        read_ml_csv(folder)
    assert "\n" not in str(error.value)
