"""All text of the page, in every language that it speaks. Nothing that an operator reads stands anywhere else.

Keys are `page.what`; scripts get those of `_SCRIPT_PAGES`. What people typed (class names) is never translated. A
new language is a new column; a test refuses a key without all of them and a key that no page uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

LANGUAGES: Final = (("en", "English"), ("de", "Deutsch"), ("zh", "中文"))
Text = tuple[str, str, str]

_SCRIPT_PAGES: Final = ("common", "state", "label", "now", "why", "js")

TEXTS: Final[dict[str, Text]] = {
    # every page
    "nav.jump": ("To the content", "Zum Inhalt", "跳到内容"),
    "nav.pages": ("Pages", "Seiten", "页面"),
    "nav.now": ("Now", "Jetzt", "现在"),
    "nav.label": ("Label", "Zuordnen", "标注"),
    "nav.learned": ("Learned", "Gelernt", "已学会"),
    "nav.quality": ("Quality", "Qualität", "质量"),
    "nav.settings": ("Settings", "Einstellungen", "设置"),
    "common.cancel": ("Cancel", "Abbrechen", "取消"),
    "common.class": ("Class", "Klasse", "类别"),
    "common.unknown": ("unknown", "unbekannt", "未知"),
    "common.more": ("More", "Mehr", "更多"),
    # what the device is doing
    "state.connecting": ("connecting…", "verbinde…", "连接中…"),
    "state.running": ("Running", "Läuft", "运行中"),
    "state.waiting": ("No release yet", "Noch kein Release", "尚无版本"),
    "state.waiting-more": (
        "It inspects nothing. It starts by itself when a release is published to it.",
        "Es wird nichts geprüft. Sobald ein Release veröffentlicht ist, geht es von selbst los.",
        "目前不检测。发布版本后会自动开始。",
    ),
    "state.camera-lost": ("Camera lost", "Kamera weg", "相机丢失"),
    "state.camera-lost-more": (
        "Nothing is inspected. Check the camera and its cable; the device tries again by itself.",
        "Es wird nichts geprüft. Kamera und Kabel ansehen; das Gerät versucht es von selbst weiter.",
        "没有检测。请检查相机和电缆；设备会自动重试。",
    ),
    "state.ended": ("Source ended", "Quelle zu Ende", "图像源已结束"),
    "state.ended-more": (
        "No more pictures come. Labelling goes on.",
        "Es kommen keine Bilder mehr. Zuordnen geht weiter.",
        "不再有新图像。仍可标注。",
    ),
    "state.drift": ("Parts look different", "Teile sehen anders aus", "零件外观变化"),
    "state.drift-more": (
        "They look unlike those this head was scored on. Look at the newest ones, and at light and lens.",
        "Sie sehen anders aus als die, an denen geprüft wurde. Neueste Teile, Licht und Objektiv ansehen.",
        "与评分时的零件不同。请检查最新零件、灯光和镜头。",
    ),
    "state.fault": ("Look at this", "Bitte ansehen", "请注意"),
    "state.away": ("No connection", "Keine Verbindung", "无连接"),
    "state.away-more": (
        "The device does not answer. Nothing is lost; this page tries again.",
        "Das Gerät antwortet nicht. Nichts geht verloren; diese Seite versucht es weiter.",
        "设备没有响应。不会丢失任何内容；页面会继续尝试。",
    ),
    # label
    "label.title": ("What is this?", "Was ist das?", "这是什么？"),
    "label.picture": ("Picture to label", "Bild zum Zuordnen", "待标注图像"),
    "label.stage": (
        "The picture. Plus and minus zoom, arrows move, zero shows all of it.",
        "Das Bild. Plus und Minus zoomen, Pfeile verschieben, Null zeigt alles.",
        "图像。加减键缩放，方向键移动，0 显示全部。",
    ),
    "label.empty": ("Nothing waits for you.", "Es wartet nichts.", "没有待标注的图像。"),
    "label.empty-more": (
        "What is new or unclear appears here. Any part on the page “Now” can be labelled too.",
        "Neues oder Unklares erscheint hier. Jedes Teil auf der Seite „Jetzt“ lässt sich auch zuordnen.",
        "新的或不确定的图像会出现在这里。“现在”页面上的任何零件也可以标注。",
    ),
    "label.where": ("Where?", "Wo?", "位置"),
    "label.zoom-in": ("Zoom in", "Vergrößern", "放大"),
    "label.zoom-out": ("Zoom out", "Verkleinern", "缩小"),
    "label.zoom-fit": ("Show all of it", "Ganz zeigen", "显示全部"),
    "label.alike": ("Pictures that look the same", "Bilder, die gleich aussehen", "相似图像"),
    "label.together": ("+{n} alike: label together", "+{n} gleiche: zusammen zuordnen", "+{n} 张相似：一起标注"),
    "label.together-on": ("{n} together", "{n} zusammen", "{n} 张一起"),
    "label.take-out": (
        "Alike, number {n}: take out or in",
        "Gleiches Bild {n}: heraus oder hinein",
        "第 {n} 张相似图：移出或加入",
    ),
    "label.classes": ("Classes", "Klassen", "类别"),
    "label.new": ("New defect…", "Neuer Fehler…", "新缺陷…"),
    "label.new-title": ("A new defect", "Ein neuer Fehler", "新缺陷"),
    "label.new-name": ("Or type its name", "Oder Namen eintippen", "或输入名称"),
    "label.new-save": ("Save", "Speichern", "保存"),
    "label.suggestions": ("Usual names", "Übliche Namen", "常用名称"),
    "label.unsure": ("Not sure", "Nicht sicher", "不确定"),
    "label.undo": ("Undo", "Zurück", "撤销"),
    "why.unlike": ("Unlike anything known", "Noch nie gesehen", "从未见过"),
    "why.between": (
        "Between {first} and {second}",
        "Zwischen {first} und {second}",
        "介于 {first} 与 {second} 之间",
    ),
    "why.check": ("Spot check", "Stichprobe", "抽查"),
    "why.other": ("A question", "Eine Frage", "请确认"),
    "why.labelled": ("Labelled {name}", "Zugeordnet: {name}", "已标注：{name}"),
    "why.picked": ("Picked by hand", "Von Hand gewählt", "手动选择"),
    "why.unsure": ("Somebody was not sure", "Jemand war nicht sicher", "有人不确定"),
    "why.not-known": ("The head does not know this.", "Das kennt das Gerät nicht.", "设备不认识它。"),
    "why.says": (
        "The head says {name}, {sure} sure.",
        "Das Gerät sagt {name}, zu {sure} sicher.",
        "设备判断：{name}，把握 {sure}。",
    ),
    "js.saving": ("saving…", "speichere…", "保存中…"),
    "js.saving-n": ("saving {n}…", "speichere {n}…", "正在保存 {n} 个…"),
    "js.saved": ("✓ saved: {name}", "✓ gespeichert: {name}", "✓ 已保存：{name}"),
    "js.saved-n": ("✓ saved: {n} × {name}", "✓ gespeichert: {n} × {name}", "✓ 已保存：{n} × {name}"),
    "js.saved-unsure": (
        "✓ noted: not sure; asked again last",
        "✓ notiert: nicht sicher; kommt zuletzt wieder",
        "✓ 已记录：不确定；最后再问",
    ),
    "js.undone": (
        "✓ taken back, as if it had never been learned",
        "✓ zurückgenommen, als wäre es nie gelernt worden",
        "✓ 已撤销，如同从未学过",
    ),
    "js.not-saved": ("Not saved: {why}", "Nicht gespeichert: {why}", "未保存：{why}"),
    "js.no-answer": ("the device does not answer", "das Gerät antwortet nicht", "设备没有响应"),
    "js.name-it": ("Give it a name.", "Bitte einen Namen geben.", "请输入名称。"),
    "js.defects": (
        "scratch|dent|crack|stain|pore|burr|chip|rust",
        "Kratzer|Delle|Riss|Fleck|Pore|Grat|Ausbruch|Rost",
        "划痕|凹坑|裂纹|污渍|气孔|毛刺|缺口|锈蚀",
    ),
    "js.done": ("✓ done", "✓ erledigt", "✓ 完成"),
    # now
    "now.live": ("The newest part", "Das neueste Teil", "最新零件"),
    "now.heat": (
        "Show where the decision comes from",
        "Zeigen, woher die Entscheidung kommt",
        "显示判断依据的位置",
    ),
    "now.none": ("No part yet", "Noch kein Teil", "还没有零件"),
    "now.hint": (
        "Tap the picture: where does the decision come from?",
        "Bild antippen: Woher kommt die Entscheidung?",
        "点按图像：判断依据在哪里？",
    ),
    "now.sure": ("{sure} sure", "zu {sure} sicher", "把握 {sure}"),
    "now.parts": ("Parts", "Teile", "零件"),
    "now.rejects": ("Rejects", "Ausschuss", "不合格"),
    "now.unknown": ("Unknown", "Unbekannt", "未知"),
    "now.ask": ("{n} wait for an answer", "{n} warten auf eine Antwort", "{n} 个等待确认"),
    "now.labels": ("Labels", "Zuordnungen", "标注"),
    "now.since": ("This shift, since {time}", "Diese Schicht, seit {time}", "本班次，自 {time}"),
    "now.release": ("Release", "Release", "版本"),
    "now.head": ("Head", "Kopf", "模型头"),
    "now.head-is": ("{number}, {state}", "{number}, {state}", "{number}，{state}"),
    "now.camera": ("Camera", "Kamera", "相机"),
    "now.fleet": ("Fleet", "Flotte", "机群"),
    "now.fleet-on": ("connected", "verbunden", "已连接"),
    "now.fleet-off": (
        "offline: works on, {n} to send",
        "offline: läuft weiter, {n} zu senden",
        "离线：继续工作，{n} 条待发送",
    ),
    "now.fleet-none": ("works alone", "arbeitet allein", "独立运行"),
    "now.last": (
        "Last parts: tap one to label it",
        "Letzte Teile: antippen zum Zuordnen",
        "最近的零件：点按即可标注",
    ),
    "now.asks": ("asks", "fragt", "待确认"),
    "now.labelled": ("labelled", "zugeordnet", "已标注"),
    "now.provisional": ("provisional", "vorläufig", "试用"),
    "now.confirmed": ("confirmed", "bestätigt", "已确认"),
    "now.live-camera": ("live, {n} frames", "läuft, {n} Bilder", "正常，{n} 帧"),
    "now.good": ("Good", "Gut", "合格"),
    # learned
    "learned.news": ("The last label", "Die letzte Zuordnung", "最近一次标注"),
    "learned.picture": ("Picture of {name}", "Bild: {name}", "图像：{name}"),
    "learned.live": ("Your label “{name}” is live.", "Die Zuordnung „{name}“ wirkt.", "标注“{name}”已生效。"),
    "learned.taken-back": (
        "Your label “{name}” is kept, but the new head did not go live: it would have been worse.",
        "Die Zuordnung „{name}“ bleibt, aber der neue Kopf wirkt nicht: Er wäre schlechter.",
        "标注“{name}”已保存，但新模型头未启用：效果会变差。",
    ),
    "learned.on-trial": (
        "Your label “{name}” is live for now; its trial is under way.",
        "Die Zuordnung „{name}“ wirkt vorläufig; die Prüfung läuft.",
        "标注“{name}”暂时生效；正在检验。",
    ),
    "learned.undone": (
        "A label was taken back, as if it had never been learned.",
        "Eine Zuordnung wurde zurückgenommen, als wäre sie nie gelernt worden.",
        "已撤销一次标注，如同从未学过。",
    ),
    "learned.nothing": (
        "Nothing was labelled here yet.",
        "Hier wurde noch nichts zugeordnet.",
        "这里还没有标注。",
    ),
    "learned.no-release": ("There is no release yet.", "Es gibt noch kein Release.", "尚无版本。"),
    "learned.effect-new": (
        "{name} is now recognised {share} of the time; it was not known before.",
        "{name} wird jetzt zu {share} erkannt; vorher war es unbekannt.",
        "现在能识别 {share} 的 {name}；以前不认识。",
    ),
    "learned.effect-up": (
        "{name}: {share}, before {before}.",
        "{name}: {share}, vorher {before}.",
        "{name}：{share}，之前 {before}。",
    ),
    "learned.effect-same": ("The score is as before.", "Die Bewertung ist wie vorher.", "评分与之前相同。"),
    "learned.effect-few": (
        "Label pictures of another part of it, and it gets a score.",
        "Noch ein anderes Teil davon zuordnen, dann wird es bewertet.",
        "再标注另一个零件，即可评分。",
    ),
    "learned.score": ("Honest score", "Ehrliche Bewertung", "真实评分"),
    "learned.score-caption": (
        "How often each class is recognised on parts that were never learned. The thin line is where it will likely lie, the tall mark where it was before.",
        "Wie oft jede Klasse an nie gelernten Teilen erkannt wird. Die dünne Linie: wo es wahrscheinlich liegt; der hohe Strich: wo es vorher lag.",
        "每个类别在从未学过的零件上的识别率。细线为可能范围，竖线为之前的值。",
    ),
    "learned.bar": ("As a bar", "Als Balken", "条形图"),
    "learned.now": ("Now", "Jetzt", "现在"),
    "learned.before.yesterday": ("Yesterday", "Gestern", "昨天"),
    "learned.before.first": ("First today", "Zuerst heute", "今天最初"),
    "learned.before.none": ("Before", "Vorher", "之前"),
    "learned.earlier.yesterday": ("yesterday {share}", "gestern {share}", "昨天 {share}"),
    "learned.earlier.first": ("first today {share}", "zuerst heute {share}", "今天最初 {share}"),
    "learned.range": ("likely {low} to {high}", "wahrscheinlich {low} bis {high}", "可能在 {low} 到 {high}"),
    "learned.one-part": ("one part only", "nur ein Teil", "只有一个零件"),
    "learned.rests": (
        "It rests on {samples} pictures of {groups} parts.",
        "Sie beruht auf {samples} Bildern von {groups} Teilen.",
        "基于 {groups} 个零件的 {samples} 张图像。",
    ),
    "learned.summed": (
        "{n} more of the release are learned from but not judged.",
        "{n} weitere des Releases sind gelernt, aber nicht bewertet.",
        "版本中另有 {n} 张已学习但未评估。",
    ),
    "learned.no-score": (
        "The score comes with the first trial: every part is judged by a head that never learned it.",
        "Die Bewertung kommt mit der ersten Prüfung: Jedes Teil wird von einem Kopf beurteilt, der es nie gelernt hat.",
        "首次检验后会有评分：每个零件由从未学过它的模型头评判。",
    ),
    "learned.outlook": ("Would more labels help?", "Helfen mehr Zuordnungen?", "更多标注有用吗？"),
    "learned.outlook-wait": (
        "Working it out; this takes some seconds.",
        "Wird berechnet; das dauert einige Sekunden.",
        "正在计算，需要几秒钟。",
    ),
    "learned.outlook-helps": (
        "Ten more labels of {name} would help most: about {gain} points (likely {low} to {high}).",
        "Zehn weitere Zuordnungen von {name} helfen am meisten: etwa {gain} Punkte (wahrscheinlich {low} bis {high}).",
        "再标注十张 {name} 最有帮助：约 {gain} 个百分点（可能 {low} 到 {high}）。",
    ),
    "learned.outlook-enough": (
        "More labels would hardly help: less than one point.",
        "Mehr Zuordnungen helfen kaum: weniger als ein Punkt.",
        "更多标注几乎没有帮助：不到 1 个百分点。",
    ),
    "learned.outlook-none": (
        "Nothing can be said yet: label parts of two classes, two parts of each.",
        "Noch lässt sich nichts sagen: zwei Klassen zuordnen, je zwei Teile.",
        "目前无法判断：请标注两个类别、各两个零件。",
    ),
    "learned.more-labels": ("Labels", "Zuordnungen", "标注数"),
    "learned.would-be": ("Score would be", "Bewertung wäre", "预计评分"),
    "learned.as-now": ("as now", "wie jetzt", "现在"),
    "learned.added": ("+{n} of each class", "+{n} je Klasse", "每类 +{n}"),
    "learned.times": ("{n} times as many", "{n}-mal so viele", "{n} 倍"),
    "learned.one-group": (
        "Not judged, as only one part shows it: {names}.",
        "Nicht bewertet, da nur ein Teil es zeigt: {names}.",
        "只有一个零件，未评估：{names}。",
    ),
    "learned.suspects": (
        "Labels to look at again",
        "Zuordnungen, die man noch einmal ansehen sollte",
        "需要复查的标注",
    ),
    "learned.suspects-say": (
        "Labels that disagree with everything else: {n}. The head may be the one that errs.",
        "Zuordnungen, die allem anderen widersprechen: {n}. Vielleicht irrt auch das Gerät.",
        "有 {n} 个标注与其他不一致。也可能是设备判断有误。",
    ),
    "learned.suspect": (
        "Labelled {labelled}, looks like {looks_like}.",
        "Zugeordnet als {labelled}, sieht aus wie {looks_like}.",
        "标注为 {labelled}，看起来像 {looks_like}。",
    ),
    "learned.confirm": ("{name} is right", "{name} stimmt", "{name} 正确"),
    "learned.correct": ("It is {name}", "Es ist {name}", "应为 {name}"),
    "learned.no-suspects": (
        "None: all labels agree with each other.",
        "Keine: Alle Zuordnungen passen zusammen.",
        "无：所有标注一致。",
    ),
    "learned.suspects-elsewhere": (
        "Of the release or other devices, without pictures here: {n} more.",
        "Weitere aus dem Release oder von anderen Geräten, ohne Bild hier: {n}.",
        "另有 {n} 个属于版本或其他设备，图像不在本机。",
    ),
    "learned.labels": ("Who labelled what", "Wer was zugeordnet hat", "标注记录"),
    "learned.what": ("Label", "Zuordnung", "标注"),
    "learned.who": ("Who, when", "Wer, wann", "人员、时间"),
    "learned.nobody": ("no name given", "ohne Namen", "未署名"),
    "learned.withdrawn": ("{name} taken back", "{name} zurückgenommen", "已撤销 {name}"),
    "learned.changed": ("{before} became {name}", "{before} wurde {name}", "{before} 改为 {name}"),
    "learned.confirmed-label": ("{name} confirmed", "{name} bestätigt", "{name} 已确认"),
    "learned.no-labels": ("No labels yet.", "Noch keine Zuordnungen.", "还没有标注。"),
    "learned.heads": ("Heads that served here", "Köpfe, die hier liefen", "本机用过的模型头"),
    "learned.head": ("Head", "Kopf", "模型头"),
    "learned.of-labels": ("{n} labelled pictures", "{n} zugeordnete Bilder", "{n} 张标注图像"),
    "learned.compare": ("Against the one before", "Gegen den davor", "与前一个比较"),
    "learned.same": ("no class changed", "keine Klasse anders", "各类不变"),
    "learned.restore": ("Roll back", "Zurück zu diesem", "回退"),
    "learned.restore-ask": (
        "Go back to head {number}? {n} labels given here since are taken back; each can be given again.",
        "Zurück zu Kopf {number}? {n} Zuordnungen seither werden zurückgenommen; jede kann wieder gegeben werden.",
        "回退到模型头 {number}？此后在本机的 {n} 个标注将被撤销，可以重新标注。",
    ),
    "learned.serves": ("serves now", "läuft jetzt", "正在使用"),
    "outcome.provisional": ("provisional", "vorläufig", "试用"),
    "outcome.confirmed": ("confirmed", "bestätigt", "已确认"),
    "outcome.taken_back": ("taken back", "zurückgenommen", "已收回"),
    "outcome.superseded": ("superseded", "überholt", "已被替代"),
    # quality
    "quality.title": ("Quality", "Qualität", "质量"),
    "quality.csv": ("CSV", "CSV", "CSV"),
    "quality.print": ("Print", "Drucken", "打印"),
    "quality.operating": ("What is rejected", "Was Ausschuss ist", "剔除规则"),
    "quality.good": ("Good parts are", "Gute Teile sind", "合格类别"),
    "quality.by-threshold": (
        "Reject by a threshold that keeps the rate below",
        "Nach einer Schwelle, die diese Rate hält",
        "按保持以下比率的阈值剔除",
    ),
    "quality.rate": ("Defects that may pass:", "Fehler, die durchgehen dürfen:", "允许漏检的缺陷："),
    "quality.escapes": ("defects would pass (escapes)", "der Fehler gingen durch (Schlupf)", "缺陷会漏检"),
    "quality.overkill": (
        "good parts would be rejected (overkill)",
        "der Gutteile wären Ausschuss",
        "合格品会被误剔",
    ),
    "quality.threshold": (
        "Reject from a defect probability of",
        "Ausschuss ab einer Fehlerwahrscheinlichkeit von",
        "缺陷概率阈值",
    ),
    "quality.unreachable": (
        "This rate cannot be kept: even rejecting all it can, more defects pass.",
        "Diese Rate lässt sich nicht halten.",
        "无法达到该比率。",
    ),
    "quality.missing": (
        "Name a good class, and label defects of two parts or more: then the rates can be told.",
        "Eine gute Klasse wählen und Fehler an zwei oder mehr Teilen zuordnen: Dann lassen sich die Raten sagen.",
        "请指定合格类别，并标注至少两个零件的缺陷，才能给出比率。",
    ),
    "quality.save": ("Use this from now on", "Ab jetzt so", "从现在起使用"),
    "quality.engineers-only": (
        "An engineer or admin may change this.",
        "Das darf eine Ingenieurin oder ein Admin ändern.",
        "工程师或管理员可以修改。",
    ),
    "quality.confusion": ("What is taken for what", "Was wofür gehalten wird", "混淆矩阵"),
    "quality.confusion-caption": (
        "Rows are what it is, columns what it was taken for. Left-out parts only.",
        "Zeilen: was es ist; Spalten: wofür es gehalten wurde. Nur nie gelernte Teile.",
        "行：实际类别；列：判断结果。仅限未学过的零件。",
    ),
    "quality.slices": ("By camera, shift and origin", "Nach Kamera, Schicht und Herkunft", "按相机、班次和来源"),
    "quality.slice": ("Which", "Welche", "分组"),
    "quality.right": ("Right", "Richtig", "正确率"),
    "quality.parts": ("Parts", "Teile", "零件"),
    "quality.no-slices": (
        "There is only one of each yet.",
        "Bisher gibt es von allem nur eins.",
        "目前每项只有一个。",
    ),
    "slice.origin": ("origin", "Herkunft", "来源"),
    "slice.camera": ("camera", "Kamera", "相机"),
    "slice.shift": ("shift", "Schicht", "班次"),
    "slice.release": ("release", "Release", "版本"),
    "slice.station": ("this station", "diese Station", "本工位"),
    "quality.curve": ("Score with each head", "Bewertung mit jedem Kopf", "各模型头的评分"),
    "quality.curve-says": (
        "Balanced accuracy of {n} heads, from {first} to {last}.",
        "Bewertung von {n} Köpfen, von {first} bis {last}.",
        "{n} 个模型头的评分，从 {first} 到 {last}。",
    ),
    "quality.curve-caption": (
        "Against the number of labelled pictures; the band is where it likely lies.",
        "Über der Zahl der zugeordneten Bilder; das Band zeigt, wo sie wahrscheinlich liegt.",
        "横轴为标注图像数；色带为可能范围。",
    ),
    "quality.no-curve": (
        "It begins with the second scored head.",
        "Beginnt mit dem zweiten bewerteten Kopf.",
        "从第二个已评分的模型头开始。",
    ),
    "quality.drift": ("Do parts still look alike?", "Sehen die Teile noch gleich aus?", "零件外观是否一致？"),
    "quality.drift-alarm": (
        "No: they look different from those this head was scored on.",
        "Nein: Sie sehen anders aus als die, an denen bewertet wurde.",
        "否：与评分时的零件不同。",
    ),
    "quality.no-drift": (
        "Yes, over the last {parts} parts.",
        "Ja, über die letzten {parts} Teile.",
        "是，最近 {parts} 个零件。",
    ),
    "quality.drift-none": (
        "Not watched yet: no part has come since this head was scored.",
        "Noch nicht beobachtet: Seit der Bewertung kam kein Teil.",
        "尚未观察：评分后还没有零件。",
    ),
    "quality.evidence": (
        "Evidence {n}; an alarm from {threshold}.",
        "Hinweisstärke {n}; Alarm ab {threshold}.",
        "证据 {n}；达到 {threshold} 报警。",
    ),
    "quality.strangest": ("The strangest of them:", "Die auffälligsten:", "最异常的："),
    "quality.strange": ("Strange part {n}", "Auffälliges Teil {n}", "异常零件 {n}"),
    # settings
    "settings.look": ("Look", "Aussehen", "外观"),
    "settings.language": ("Language", "Sprache", "语言"),
    "settings.theme": ("Light", "Helligkeit", "明暗"),
    "settings.auto": ("as the screen", "wie der Bildschirm", "跟随系统"),
    "settings.light": ("bright", "hell", "明亮"),
    "settings.dark": ("dark", "dunkel", "深色"),
    "settings.order": ("Class buttons", "Klassenknöpfe", "类别按钮"),
    "settings.recent": ("last used first", "zuletzt benutzte zuerst", "最近使用优先"),
    "settings.fixed": ("always in one place", "immer am selben Platz", "固定位置"),
    "settings.who": ("Who is here", "Wer ist hier", "当前人员"),
    "settings.logged-in": ("{name}, {role}", "{name}, {role}", "{name}，{role}"),
    "settings.logout": ("Log out", "Abmelden", "退出登录"),
    "settings.operator": ("Name written beside labels", "Name neben den Zuordnungen", "标注署名"),
    "settings.no-accounts": (
        "There are no accounts: whoever sits at this device may do everything, and no other machine reaches this page.",
        "Es gibt keine Konten: Wer an diesem Gerät sitzt, darf alles; kein anderer Rechner erreicht diese Seite.",
        "没有账户：在本设备前的人可以执行所有操作，其他计算机无法访问此页面。",
    ),
    "settings.accounts": ("Accounts", "Konten", "账户"),
    "settings.name": ("Name", "Name", "名称"),
    "settings.role": ("Role", "Rolle", "角色"),
    "settings.secret": ("PIN or password", "PIN oder Passwort", "PIN 或密码"),
    "settings.secret-rule": (
        "Operators: a PIN of 6 digits or more. Others: 10 characters or more.",
        "Bedienende: PIN ab 6 Ziffern. Andere: ab 10 Zeichen.",
        "操作员：至少 6 位数字 PIN。其他：至少 10 个字符。",
    ),
    "settings.first": (
        "The first account is an admin's; from then on everybody logs in.",
        "Das erste Konto ist ein Admin-Konto; ab dann melden sich alle an.",
        "第一个账户必须是管理员；此后所有人都需登录。",
    ),
    "settings.add": ("Add", "Anlegen", "添加"),
    "settings.remove": ("Remove", "Entfernen", "移除"),
    "settings.remove-ask": (
        "Remove {name}? The name stays beside earlier labels.",
        "{name} entfernen? Der Name bleibt neben früheren Zuordnungen.",
        "移除 {name}？名称会保留在以前的标注旁。",
    ),
    "settings.erase": ("Erase", "Löschen", "抹除"),
    "settings.erase-ask": (
        "Erase {name}? Nothing here will tell any more whose labels these were.",
        "{name} löschen? Danach sagt hier nichts mehr, wessen Zuordnungen es waren.",
        "抹除 {name}？此后无法得知这些标注属于谁。",
    ),
    "settings.tokens": ("Machines", "Maschinen", "机器"),
    "settings.token-rule": (
        "A token lets a machine use the HTTP interface. It is shown once.",
        "Ein Token lässt eine Maschine die HTTP-Schnittstelle benutzen. Er wird einmal gezeigt.",
        "令牌让机器使用 HTTP 接口，仅显示一次。",
    ),
    "settings.audit": ("Who did what", "Wer was getan hat", "操作记录"),
    "settings.when": ("When", "Wann", "时间"),
    "settings.by": ("Who", "Wer", "人员"),
    "settings.did": ("What", "Was", "操作"),
    "settings.from": ("From", "Von", "来源"),
    "role.operator": ("operator", "Bedienung", "操作员"),
    "role.engineer": ("engineer", "Technik", "工程师"),
    "role.admin": ("admin", "Admin", "管理员"),
    "audit.login": ("logged in", "angemeldet", "登录"),
    "audit.login refused": ("was refused", "abgewiesen", "登录被拒"),
    "audit.account added": ("added an account:", "Konto angelegt:", "添加账户："),
    "audit.account removed": ("removed an account:", "Konto entfernt:", "移除账户："),
    "audit.account erased": ("erased an account", "Konto gelöscht", "抹除账户"),
    "audit.secret changed": ("changed a secret of", "PIN oder Passwort geändert:", "更改密码："),
    "audit.token added": ("added a token:", "Token angelegt:", "添加令牌："),
    "audit.token removed": ("removed a token:", "Token entfernt:", "移除令牌："),
    "audit.class defined": ("defined a class", "Klasse angelegt", "新建类别"),
    "audit.class renamed": ("renamed a class", "Klasse umbenannt", "重命名类别"),
    "audit.head restored": ("rolled back to head", "zurück zu Kopf", "回退到模型头"),
    "audit.operating point": ("changed what is rejected:", "Ausschussregel geändert:", "更改剔除规则："),
    # login
    "login.title": ("Log in", "Anmelden", "登录"),
    "login.name": ("Name", "Name", "姓名"),
    "login.secret": ("PIN or password", "PIN oder Passwort", "PIN 或密码"),
    "login.pad": ("Digits", "Ziffern", "数字键"),
    "login.back": ("Delete the last digit", "Letzte Ziffer löschen", "删除最后一位"),
    "login.go": ("Log in", "Anmelden", "登录"),
}


def language_of(chosen: str | None, accepted: str) -> str:
    """Return the language to speak: what somebody chose, else the first that the browser asks for and we have.

    >>> language_of(None, "fr-CH, de;q=0.9, en;q=0.8"), language_of("zh", "de"), language_of("xx", "")
    ('de', 'zh', 'en')
    """
    known = [code for code, _ in LANGUAGES]
    if chosen in known:
        return str(chosen)
    wanted = [each.split(";")[0].strip().lower()[:2] for each in accepted[:200].split(",")]
    return next((code for code in wanted if code in known), known[0])


def texts(language: str) -> Callable[..., str]:
    """Return what gives a key's text in a language, its places filled: `t("now.since", time="14:00")`."""
    column = [code for code, _ in LANGUAGES].index(language)

    def t(key: str, **values: object) -> str:
        return TEXTS[key][column].format(**values) if values else TEXTS[key][column]

    return t


def for_scripts(language: str) -> dict[str, str]:
    """Return the texts that the page's scripts use."""
    column = [code for code, _ in LANGUAGES].index(language)
    return {key: text[column] for key, text in TEXTS.items() if key.split(".")[0] in _SCRIPT_PAGES}
