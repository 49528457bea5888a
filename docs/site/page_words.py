"""The few words of the generated pages themselves, by language; what they tell of an analysis is in the catalogue."""

from __future__ import annotations

from collections.abc import Mapping

LANGUAGES = ("en", "ja")
PARTS: Mapping[str, Mapping[str, str]] = {
    "ja": {
        "Start": "はじめに",
        "Guides": "ガイド",
        "Analyses": "分析",
        "Reference": "リファレンス",
        "Background": "背景",
    },
}
"""Titles of the parts of the site in other languages."""

WORDS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "analyses": "The 28 analyses",
        "analyses_intro": (
            "Each page says what the analysis answers, what each of its fields is and how strong its evidence can be, "
            "how it is computed, what can be set, and what it prints for real checkpoints. The examples are run each "
            "time this site is built."
        ),
        "flag": "flag",
        "what": "what it does",
        "reads": "Reads {reads}.",
        "headers": "headers only, no values",
        "pass": "every element, once",
        "matrices": "every element once, then chosen matrices again",
        "model": "the weights, and runs the model if you hand it over",
        "fields": "Fields",
        "fields_intro": (
            "In the order of the output line. “At best” is the strongest [evidence](../evidence.md) that the field "
            "can carry."
        ),
        "field": "field",
        "name": "name",
        "unit": "unit",
        "best": "at best",
        "definition": "what it is",
        "stop": ". ",
        "words": "Words, in rising order of concern: {words}.",
        "formula": "How it is computed",
        "from": "From [{title}]({link}).",
        "elsewhere": "The full account is in: {links}.",
        "by_definition": "As the definitions of the fields say; no other formula is behind them.",
        "settings": "Settings",
        "settings_intro": (
            "They move words, counts and findings, never a measured number. How to set them: "
            "[settings](../settings.md)."
        ),
        "no_settings": "Nothing of it can be set.",
        "policy": "Also every entry of the [policy](../policy.md).",
        "setting": "setting",
        "default": "default",
        "range": "accepted",
        "basis": "where the default comes from",
        "shared": "{key} (shared)",
        "example": "Example",
        "shared_note": "A shared setting has one value for all analyses that use it.",
        "bare": "From the weights alone",
        "bare_intro": (
            "The same two checkpoints without any file beside the weights. What cannot be known then is unknown, with "
            "the reason."
        ),
        "sources": "Sources",
        "command_line": "Command line",
        "command_line_intro": (
            "What `diffai --help` and `%diffai?` print. The magic takes the same flags; there A and B may also be "
            "names of variables."
        ),
        "digits": (
            "One small network after 150 and after 900 steps of training, with its log beside it. Both are in the "
            "repository."
        ),
        "damaged": "One small network and a copy of it with one NaN. Both are in the repository.",
        "language": (
            "A language model of 100,944 parameters after 200 and after 600 steps. Both are in the repository, in "
            "`docs/site/checkpoints`."
        ),
        "copy": (
            "A language model of 100,944 parameters, and a copy whose projections are rounded to 4 bits in groups of "
            "32."
        ),
        "families": "A small language model against a network of three dense layers.",
    },
    "ja": {
        "analyses": "28の分析",
        "analyses_intro": (
            "各ページでは、その分析が何に答えるのか、各フィールドの意味と得られる根拠の強さ、計算方法、変更できる設定、"
            "そして実際のチェックポイントに対する出力を説明します。出力例は、このサイトをビルドするたびに実際に実行して"
            "得たものです。"
        ),
        "flag": "フラグ",
        "what": "内容",
        "reads": "読み取る範囲: {reads}。",
        "headers": "ヘッダーのみ（値は読みません）",
        "pass": "すべての要素を一度だけ",
        "matrices": "すべての要素を一度、その後に選ばれた行列をもう一度",
        "model": "重み。モデルを渡した場合はモデルの実行も行います",
        "fields": "フィールド",
        "fields_intro": (
            "出力行に現れる順に並べています。「最良の根拠」は、そのフィールドが持ちうる最も強い[根拠](../evidence.md)"
            "（measured 実測、reported 申告、derived 導出、estimated 推定、unknown 不明）です。"
        ),
        "field": "フィールド",
        "name": "名称",
        "unit": "単位",
        "best": "最良の根拠",
        "definition": "意味",
        "stop": "。",
        "words": "取りうる語（懸念の小さい順）: {words}。",
        "formula": "計算方法",
        "from": "[{title}]({link})より。",
        "elsewhere": "式の詳しい説明は次のページ（英語）にあります: {links}。",
        "by_definition": "上の表の定義のとおりです。これ以外の式は使いません。",
        "settings": "設定",
        "settings_intro": (
            "設定が変えるのは判定の語、件数、所見だけです。実測値が変わることはありません。設定方法は"
            "[設定](../settings.md)を参照してください。"
        ),
        "no_settings": "変更できる設定はありません。",
        "policy": "このほか、[ポリシー](../policy.md)のすべての項目を設定できます。",
        "setting": "設定",
        "default": "既定値",
        "range": "範囲",
        "basis": "既定値の由来",
        "shared": "{key}（共有）",
        "shared_note": "「共有」の設定は、それを使うすべての分析で同じ値になります。",
        "example": "出力例",
        "bare": "重みだけの場合",
        "bare_intro": (
            "同じ2つのチェックポイントを、重みのほかにファイルが何もない状態で比較した結果です。重みだけではわからない"
            "値は unknown（不明）となり、その理由が示されます。"
        ),
        "sources": "出典",
        "command_line": "コマンドライン",
        "command_line_intro": "",
        "digits": (
            "小さなネットワーク1つの、150ステップ後と900ステップ後のチェックポイントです。学習ログが付いています。"
            "どちらもリポジトリに含まれています。"
        ),
        "damaged": "小さなネットワークと、NaNを1つ含むそのコピーです。どちらもリポジトリに含まれています。",
        "language": (
            "100,944パラメータの言語モデルの、200ステップ後と600ステップ後のチェックポイントです。どちらもリポジトリの "
            "`docs/site/checkpoints` に含まれています。"
        ),
        "copy": "100,944パラメータの言語モデルと、射影行列を32要素ごとのグループで4ビットに丸めたコピーです。",
        "families": "小さな言語モデルと、全結合層3つのネットワークの比較です。",
    },
}
