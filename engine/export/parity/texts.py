"""The texts that a model and its GGUF file are compared on: strings that are difficult to tokenize,
and ordinary prose, code and JSON for logits.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_FIXED_TEXTS = (
    "",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\n\n\n",
    "\r\n",
    "\t\n",
    " \n \n ",
    "Hello world",
    " Hello world",
    "Hello World!",
    " Hello, world!",
    "Hello, y'all! How are you 😁 ?我想在apple工作1314151天～",
    "this is 🦙.cpp",
    "w048 7tuijk dsdfhu",
    "нещо на Български",
    "កាន់តែពិសេសអាចខលចេញ",
    "🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ (only emoji that has its own token)",
    "👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇨🇭🇩🇪 ✌🏽",
    "Hello\n  Hello\n    Hello\n        Hello",
    " (",
    "\n =",
    "' era",
    "!!!!!!",
    "3",
    "33",
    "333",
    "3333",
    "33333",
    "333333333",
    "1,234,567.89e-10 0x1F 1e9 ½ ² Ⅷ ٣ ৩",
    "Cửa Việt",
    "discards",
    "I've you'll WE'RE THEY'D it's 's 't 'LL 'Ve ' s",
    "can't  won't\tshan't\nI'M",
    "camelCase snake_case kebab-case SCREAMING_CASE mixed123numbers",
    "def f(x):\n    return {\n\t'a': [1, 2, 3],\n    }\n\n\n",
    '{"tool": "search", "arguments": {"query": "gold \\"price\\" 2024", "n": 10}}',
    "<?xml version='1.0'?><a b=\"c\">&lt;&amp;</a>",
    "http://example.org/a/b?c=d&e=%20f#g user@example.org C:\\Users\\x",
    "$\\frac{a}{b} = \\sum_{i=0}^{n} x_i^2$",
    "e\u0301 é ﬁ ﬂ Å Å ñ n\u0303 가 각",
    "ｆｕｌｌ　ｗｉｄｔｈ　１２３",
    "中文没有空格，标点。日本語のテキスト、ひらがなカタカナ。한국어 텍스트",
    "العربية مع تشكيل: مُحَمَّد עברית עם נִקּוּד",
    "हिन्दी में पाठ ภาษาไทยไม่มีช่องว่าง",
    "a\u00a0b\u2003c\u2009d\u200be\ufefff\u3000g\u2028h\u2029i",
    "a\u0000b\u0001c\u001b[31md\u007fe\u0085f",
    "\u202eright to left override\u202c",
    "Z̸̢̛a̷͠l̶͝g̵͘o̴͐",
    "▁▁ ▁ _▁_ ▁a a▁b  ▁",
    "ĠĠ Ġ Ċ ĉ Âł",
    "<0x41> <0x0A> <0xFF> <0xZZ>",
    "<s> </s> <unk> <pad> [PAD] [INST] [/INST] <<SYS>>",
    "<|endoftext|><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|> <|im_end|>x<|im_end|><|im_en d|> <|im_start",
    "<s>a</s> <s> b </s>\n<s>\n</s>",
    "</s></s>  </s>   a",
    "<|begin_of_text|><|eot_id|><|user|>\n<|assistant|>\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    " a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "================================================================",
    "-----BEGIN-----\n...\n-----END-----",
    "     five spaces before, and after     ",
    "tabs\t\t\tand  spaces   mixed \t \t\n\t\n",
    "word\u00ad soft hyphen, naïve café, Straße, ŁÓDŹ, İstanbul ıI",
    "𝕞𝕒𝕥𝕙 𝓈𝒸𝓇𝒾𝓅𝓉 𐍈 𒀀 𓀀 🜁",
    "ﷺ ꧅ ௵ 𒐫",
    "…—–‘’“”«»‹›•·°©®™€£¥¢",
    "\U0010ffff\ufffd\ue000",
    "x" * 300,
    " " * 100,
    "\n" * 40,
    "ab" * 150,
    "the quick brown fox jumps over the lazy dog " * 5,
)

_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789",
    " ",
    "  \t\n\r",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "éèêëàâäîïôöûüçñßøåæœłžščřůűőğışþð",
    "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "αβγδεζηθικλμνξοπρστυφχψω",
    "的一是不了人我在有他这为之大来以个中上们",
    "あいうえおかきくけこアイウエオカキクケコ",
    "가나다라마바사아자차카타파하",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "אבגדהוזחטיכלמנסעפצקרשת",
    "अआइईउऊएऐओऔकखगघचछजझ",
    "😀😁😂🤣😃😄🦙🚀✅❤️👍🏽\u200d",
    "▁ĠĊ\u00a0\u200b\u2003\u3000\ufeff",
)
_WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this "
    "have from or had an they which one you were her all she there would their we him "
    "been has when who will more no if out so said what up its about into than them "
    "can only other new some could time these two may then do first any my now such "
    "like our over man me even most made after also def return import class self None "
    "True False print range len str int dict list for while if else elif try except "
    "raise with lambda yield async await null true false function const let search "
    'route query tool calculate weather JSON "name": {"a": [1, 2]} it\'s don\'t I\'ll '
    "we've "
)

LOGIT_TEXTS = (
    "The lighthouse keeper had kept a diary for thirty-one years, and in all that time he had "
    "never once written about the sea. He wrote of the price of oil, of the goat that had eaten "
    "the spare wick, and of a letter from his sister which he meant to answer. When the ship came "
    "in, late one evening in November 1904, he noted only that the kettle had boiled dry.",
    "def merge(left: list[int], right: list[int]) -> list[int]:\n"
    "    result = []\n    i = j = 0\n    while i < len(left) and j < len(right):\n"
    "        if left[i] <= right[j]:\n            result.append(left[i])\n            i += 1\n"
    "        else:\n            result.append(right[j])\n            j += 1\n"
    "    return result + left[i:] + right[j:]\n",
    'Route this query to a tool: search for gold analysis\n{"tool": "search", "arguments": '
    '{"query": "gold analysis", "limit": 10, "language": "en"}}\n{"tool": "calculator", '
    '"arguments": {"expression": "17.5 * 24 / 3"}}',
    "What is photosynthesis? It is how plants make sugar out of water, carbon dioxide and light. "
    "Die Pflanze gibt dabei Sauerstoff ab. C'est pourquoi une forêt sent bon après la pluie. "
    "植物は光を使って糖を作ります。 Это происходит в хлоропластах.",
)


_AROUND_SPECIAL = (("", ""), (" ", " "), ("a", "b"), ("\n", "\n"))


def difficult_texts(count: int, special: Sequence[str] = (), seed: int = 0) -> list[str]:
    """`count` strings, the same for the same arguments.

    Fixed strings first, then the tokenizer's first `special` tokens in context, then random strings
    of mixed scripts, words, runs of white space and special tokens.
    """
    texts = list(_FIXED_TEXTS[:count])
    texts += [
        f"{before}{token}{after}" for token in special[:8] for before, after in _AROUND_SPECIAL
    ]
    rng = random.Random(seed)
    while len(texts) < count:
        texts.append(_random_text(rng, special))
    return texts[:count]


def _random_text(rng: random.Random, special: Sequence[str]) -> str:
    parts: list[str] = []
    for _ in range(rng.randint(1, 14)):
        kind = rng.random()
        if kind < 0.4:
            parts.append(rng.choice(_WORDS.split()))
            parts.append(rng.choice((" ", " ", " ", "", "  ", "\n")))
        elif kind < 0.85:
            alphabet = rng.choice(_ALPHABETS)
            parts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 9))))
        elif kind < 0.93:
            parts.append(rng.choice((" ", "\n", "\t")) * rng.randint(1, 20))
        elif special:
            parts.append(rng.choice(special))
    return "".join(parts)
