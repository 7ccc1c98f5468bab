"""Tokens as bytes, and encoding in the middle of a text."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from engine.distill.align.vocabulary import ByteVocabulary
from tests.distill.conftest import REAL_TEACHERS
from tests.support.toys import NASTY, Toy, byte_level, sentencepiece

TRAINED = ("byte_level", "prepend", "metaspace")
REAL = (*REAL_TEACHERS, "llama2", "mistral")
nasty_text = st.text(
    alphabet=st.one_of(
        st.sampled_from("ab \t\r\n.é🙂漢\u0301\u200d01<|>_"),
        st.characters(exclude_categories=("Cs",), exclude_characters="▁"),
    ),
    max_size=24,
)


def check_text(vocabulary: ByteVocabulary, text: str) -> None:
    data = text.encode()
    assert vocabulary.spells(vocabulary.encode(text), data)
    ids, dummy = vocabulary.encode_start(text)
    assert vocabulary.spells(ids, b" " * dummy + data)


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("text", NASTY)
def test_the_tokens_of_nasty_text_spell_it(trained, kind, text):
    check_text(trained[kind].vocabulary, text)


@pytest.mark.parametrize("kind", TRAINED)
@settings(max_examples=60, deadline=None)
@given(text=nasty_text)
def test_the_tokens_of_any_text_spell_it(trained, kind, text):
    check_text(trained[kind].vocabulary, text)


@pytest.mark.parametrize("name", REAL)
def test_the_tokens_of_nasty_text_spell_it_with_real_tokenizers(real_reader, name):
    vocabulary = real_reader(name).vocabulary
    for text in NASTY:
        check_text(vocabulary, unicodedata.normalize("NFC", text))  # as blocks are


@pytest.mark.parametrize("name", [name for name in REAL if name != "smollm2"])
def test_a_real_vocabulary_has_a_token_for_every_byte_of_utf8(real_reader, name):
    vocabulary = real_reader(name).vocabulary
    single = {token for token in vocabulary.token_bytes if token is not None and len(token) == 1}
    never_in_utf8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
    assert {b for b in range(256) if bytes([b]) not in single} <= never_in_utf8


def test_sentencepiece_puts_a_dummy_space_before_a_text_and_not_within_one(trained):
    vocabulary = trained["prepend"].vocabulary
    ids, dummy = vocabulary.encode_start("river")
    assert dummy == 1
    assert vocabulary.token_bytes[ids[0]].startswith(b" ")
    assert not vocabulary.token_bytes[vocabulary.encode("river")[0]].startswith(b" ")


def test_a_dummy_space_is_told_from_the_texts_own(trained):
    vocabulary = trained["prepend"].vocabulary
    ids, dummy = vocabulary.encode_start(" river")
    assert dummy == 1
    assert vocabulary.spells(ids, b"  river")
    assert trained["byte_level"].vocabulary.encode_start(" river")[1] == 0


def test_what_looks_like_a_special_token_is_read_as_text(trained):
    vocabulary = trained["byte_level"].vocabulary
    special = trained["byte_level"].tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert vocabulary.token_bytes[special] is None
    assert vocabulary.lengths[special] == -1
    assert special not in vocabulary.encode("a<|im_end|>b")


def test_a_sentencepiece_sign_in_the_text_does_not_pass_for_a_space(trained):
    for kind in ("prepend", "metaspace"):
        assert trained[kind].encode_span("under▁score") is None
    assert trained["byte_level"].encode_span("under▁score") is not None


def test_tokens_of_half_a_character_keep_their_bytes():
    toy = Toy(b"a\xc3\xa9", [(b"a", b"\xc3"), (b"\xa9", b"a")])
    vocabulary = toy.reader.vocabulary
    ids = vocabulary.encode("aéa")
    assert [vocabulary.token_bytes[i] for i in ids] == [b"a\xc3", b"\xa9a"]


@pytest.mark.parametrize("kind", TRAINED)
def test_first_tokens_begin_their_bytes(trained, kind):
    vocabulary = trained[kind].vocabulary
    pieces = [text.encode()[k:] for text in NASTY for k in range(4) if len(text.encode()) > k]
    for piece, token in zip(pieces, vocabulary.first_tokens(pieces), strict=True):
        assert token >= 0
        assert piece.startswith(vocabulary.token_bytes[token])


def test_first_tokens_of_texts_are_their_encodings_first(trained):
    for reader in trained.values():
        texts = [text for text in NASTY if text]
        first = reader.vocabulary.first_tokens([text.encode() for text in texts])
        assert first.tolist() == [int(reader.vocabulary.encode(text)[0]) for text in texts]


def test_byte_zero_has_a_first_token_even_when_its_id_is_zero():
    tokens = [f"<0x{b:02X}>" for b in range(256)]
    model = models.BPE(
        vocab={token: n for n, token in enumerate(tokens)}, merges=[], byte_fallback=True
    )
    assert ByteVocabulary(Tokenizer(model)).first_tokens([b"\x00", b"\xff"]).tolist() == [0, 255]


def test_rows_beyond_the_tokenizer_have_no_bytes():
    tokenizer = byte_level(300).backend_tokenizer
    vocabulary = ByteVocabulary(tokenizer, 320)
    assert vocabulary.size == 320
    assert vocabulary.token_bytes[300:] == [None] * 20
    assert (vocabulary.lengths[300:] == -1).all()


def test_added_tokens_that_are_not_special_are_text():
    tokenizer = byte_level(300).backend_tokenizer
    tokenizer.add_tokens([AddedToken("    ", normalized=False)])
    vocabulary = ByteVocabulary(tokenizer)
    spaces = tokenizer.token_to_id("    ")
    assert vocabulary.token_bytes[spaces] == b"    "
    assert spaces in vocabulary.encode("a    b")
    assert vocabulary.spells(vocabulary.encode("a    b"), b"a    b")


def test_the_digest_tells_tokenizers_apart():
    tokenizer = byte_level(300).backend_tokenizer
    digest = ByteVocabulary(tokenizer).digest
    assert ByteVocabulary(Tokenizer.from_str(tokenizer.to_str())).digest == digest
    assert ByteVocabulary(tokenizer, 301).digest != digest
    assert ByteVocabulary(byte_level(301).backend_tokenizer).digest != digest


def test_a_tokenizer_without_byte_exact_tokens_is_refused():
    with pytest.raises(ValueError, match="WordPiece"):
        ByteVocabulary(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")))


def test_unigram_pieces_are_bytes_too():
    spec = json.loads(sentencepiece("metaspace").backend_tokenizer.to_str())
    pieces = [(f"<0x{b:02X}>", -9.0) for b in range(256)]
    pieces += [("▁river", -1.0), ("s", -2.0), ("▁", -3.0)]
    unigram = models.Unigram([("<unk>", 0.0), *pieces], unk_id=0, byte_fallback=True)
    tokenizer = Tokenizer(unigram)
    tokenizer.pre_tokenizer = Tokenizer.from_str(json.dumps(spec)).pre_tokenizer
    vocabulary = ByteVocabulary(tokenizer)
    ids, dummy = vocabulary.encode_start("rivers é")
    assert dummy == 1
    assert vocabulary.spells(ids, " rivers é".encode())
    assert (np.array(vocabulary.lengths[ids]) > 0).all()
