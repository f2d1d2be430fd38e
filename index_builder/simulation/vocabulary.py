# ruff: noqa: RUF001 -- letters of other scripts are intended
"""Vocabulary of the simulator: the words of its invented titles.

Every topic has the same number of words in every language. The words are sorted from everyday to catchy, and a word's
position determines its appeal. A hook comes before a title. A hook raises or lowers the title's appeal in any topic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

LANGUAGES: Final = ("en", "es", "ru", "zh", "ar", "hi")

TOPICS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "Cooking": {
        "en": ("salad", "soup", "noodles", "burger", "chocolate cake"),
        "es": ("ensalada", "sopa", "fideos", "hamburguesa", "tarta de chocolate"),
        "ru": ("салат", "суп", "лапша", "бургер", "шоколадный торт"),
        "zh": ("沙拉", "汤", "面条", "汉堡", "巧克力蛋糕"),
        "ar": ("سلطة", "حساء", "معكرونة", "برغر", "كعكة الشوكولاتة"),
        "hi": ("सलाद", "सूप", "नूडल्स", "बर्गर", "चॉकलेट केक"),
    },
    "Football": {
        "en": ("training", "stadium", "penalty", "derby", "last minute goal"),
        "es": ("entrenamiento", "estadio", "penalti", "clásico", "gol en el último minuto"),
        "ru": ("тренировка", "стадион", "пенальти", "дерби", "гол на последней минуте"),
        "zh": ("训练", "体育场", "点球", "德比", "最后一分钟进球"),
        "ar": ("تدريب", "ملعب", "ركلة جزاء", "ديربي", "هدف في الدقيقة الأخيرة"),
        "hi": ("अभ्यास", "स्टेडियम", "पेनल्टी", "डर्बी", "आखिरी मिनट का गोल"),
    },
    "Pets": {
        "en": ("aquarium", "hamster", "parrot", "puppy", "funny cat"),
        "es": ("acuario", "hámster", "loro", "cachorro", "gato gracioso"),
        "ru": ("аквариум", "хомяк", "попугай", "щенок", "смешной кот"),
        "zh": ("水族箱", "仓鼠", "鹦鹉", "小狗", "搞笑猫咪"),
        "ar": ("حوض سمك", "هامستر", "ببغاء", "جرو", "قطة مضحكة"),
        "hi": ("एक्वेरियम", "हैम्स्टर", "तोता", "पिल्ला", "मज़ेदार बिल्ली"),
    },
    "Music": {
        "en": ("scales", "guitar", "cover", "concert", "new single"),
        "es": ("escalas", "guitarra", "versión", "concierto", "nuevo sencillo"),
        "ru": ("гаммы", "гитара", "кавер", "концерт", "новый сингл"),
        "zh": ("音阶", "吉他", "翻唱", "演唱会", "新单曲"),
        "ar": ("سلالم موسيقية", "غيتار", "أغنية معادة", "حفلة", "أغنية جديدة"),
        "hi": ("सरगम", "गिटार", "कवर गीत", "कॉन्सर्ट", "नया गाना"),
    },
    "Travel": {
        "en": ("airport", "hotel", "mountains", "beach", "hidden island"),
        "es": ("aeropuerto", "hotel", "montañas", "playa", "isla secreta"),
        "ru": ("аэропорт", "отель", "горы", "пляж", "тайный остров"),
        "zh": ("机场", "酒店", "山", "海滩", "秘密小岛"),
        "ar": ("مطار", "فندق", "جبال", "شاطئ", "جزيرة مخفية"),
        "hi": ("हवाई अड्डा", "होटल", "पहाड़", "समुद्र तट", "गुप्त द्वीप"),
    },
    "Science": {
        "en": ("theorem", "chemistry", "volcano", "black hole", "rocket launch"),
        "es": ("teorema", "química", "volcán", "agujero negro", "lanzamiento de cohete"),
        "ru": ("теорема", "химия", "вулкан", "чёрная дыра", "запуск ракеты"),
        "zh": ("定理", "化学", "火山", "黑洞", "火箭发射"),
        "ar": ("نظرية", "كيمياء", "بركان", "ثقب أسود", "إطلاق صاروخ"),
        "hi": ("प्रमेय", "रसायन", "ज्वालामुखी", "ब्लैक होल", "रॉकेट प्रक्षेपण"),
    },
    "Beauty": {
        "en": ("soap", "nails", "hairstyle", "makeup", "total makeover"),
        "es": ("jabón", "uñas", "peinado", "maquillaje", "cambio total"),
        "ru": ("мыло", "ногти", "причёска", "макияж", "полное преображение"),
        "zh": ("肥皂", "美甲", "发型", "化妆", "大变身"),
        "ar": ("صابون", "أظافر", "تسريحة", "مكياج", "تحول كامل"),
        "hi": ("साबुन", "नाखून", "हेयरस्टाइल", "मेकअप", "पूरा मेकओवर"),
    },
    "Gaming": {
        "en": ("patch notes", "tutorial", "boss fight", "speedrun", "world record"),
        "es": ("notas del parche", "tutorial", "jefe final", "speedrun", "récord mundial"),
        "ru": ("обновление", "обучение", "битва с боссом", "спидран", "мировой рекорд"),
        "zh": ("更新说明", "教程", "首领战", "速通", "世界纪录"),
        "ar": ("تحديث", "شرح", "قتال الزعيم", "إنهاء سريع", "رقم قياسي عالمي"),
        "hi": ("अपडेट", "ट्यूटोरियल", "बॉस फाइट", "स्पीडरन", "विश्व रिकॉर्ड"),
    },
}

HOOKS: Final[Mapping[str, tuple[str, ...]]] = {
    "en": ("part 37:", "today:", "how to:", "you will not believe:"),
    "es": ("parte 37:", "hoy:", "cómo hacer:", "no lo vas a creer:"),
    "ru": ("часть 37:", "сегодня:", "как сделать:", "вы не поверите:"),
    "zh": ("第37集：", "今天：", "如何：", "你不会相信："),
    "ar": ("الجزء 37:", "اليوم:", "كيف:", "لن تصدق:"),
    "hi": ("भाग 37:", "आज:", "कैसे करें:", "आप यकीन नहीं करेंगे:"),
}
