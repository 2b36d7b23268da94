"""All text of the page, in every language that it speaks. Nothing that an operator reads stands anywhere else.

Keys are `page.what`; scripts get those of `_SCRIPT_PAGES`. What people typed (class names) is never translated. A
new language is a new column; a test refuses a key without all of them and a key that no page uses.
"""

from __future__ import annotations

from typing import Final

from sdk.reason import ENGLISH

LANGUAGES: Final = (("en", "English"), ("de", "Deutsch"), ("zh", "中文"))
Text = tuple[str, str, str]

_SCRIPT_PAGES: Final = ("common", "state", "label", "now", "why", "refused", "js")

TEXTS: Final[dict[str, Text]] = {
    # every page
    "nav.jump": ("To the content", "Zum Inhalt", "跳到内容"),
    "nav.pages": ("Pages", "Seiten", "页面"),
    "nav.now": ("Now", "Jetzt", "实时"),
    "nav.label": ("Label", "Zuordnen", "标注"),
    "nav.learned": ("Learned", "Gelernt", "学习结果"),
    "nav.quality": ("Quality", "Qualität", "质量"),
    "nav.settings": ("Settings", "Einstellungen", "设置"),
    "common.cancel": ("Cancel", "Abbrechen", "取消"),
    "common.class": ("Class", "Klasse", "类别"),
    "common.unknown": ("unknown", "unbekannt", "未知"),
    "common.decimal": (".", ",", "."),
    "common.percent": ("{n}\u00a0%", "{n}\u00a0%", "{n}%"),
    "common.space": (" ", " ", ""),
    "common.and": (" and ", " und ", "、"),
    "common.more": ("More", "Mehr", "更多"),
    # what the device is doing
    "state.connecting": ("connecting…", "verbinde…", "连接中…"),
    "state.running": ("Running", "Läuft", "运行中"),
    "state.waiting": ("No release yet", "Noch kein Release", "尚无发布版本"),
    "state.waiting-more": (
        "It inspects nothing. It starts by itself when a release is published to it.",
        "Es wird nichts geprüft. Sobald ein Release veröffentlicht ist, geht es von selbst los.",
        "目前不检测。收到发布版本后会自动开始。",
    ),
    "state.waiting-alone": (
        "It inspects nothing. Name a bundle in its site.toml, or bring it a release on a stick.",
        "Es wird nichts geprüft. In site.toml ein Bundle angeben oder ein Release auf einem Stick bringen.",
        "目前不检测。请在 site.toml 中指定 bundle，或用 U 盘带入发布版本。",
    ),
    "state.camera-lost": ("Camera lost", "Kamera ausgefallen", "相机断开"),
    "state.camera-lost-more": (
        "Nothing is inspected. Check the camera and its cable; the device tries again by itself.",
        "Es wird nichts geprüft. Kamera und Kabel prüfen; das Gerät versucht es von selbst weiter.",
        "检测已停止。请检查相机和电缆；设备会自动重试。",
    ),
    "state.camera-lost-one": (
        "{name} gives no pictures. Check the camera and its cable; the device tries again by itself.",
        "{name} liefert keine Bilder. Kamera und Kabel prüfen; das Gerät versucht es von selbst weiter.",
        "{name} 没有图像。请检查相机和电缆；设备会自动重试。",
    ),
    "state.ended": ("Source ended", "Quelle zu Ende", "图像源已结束"),
    "state.ended-more": (
        "No more pictures come. Labelling goes on.",
        "Es kommen keine Bilder mehr. Zuordnen geht weiter.",
        "不再有新图像。仍可标注。",
    ),
    "state.drift": ("Parts look different", "Teile sehen anders aus", "工件外观有变化"),
    "state.drift-more": (
        "They look unlike those this head was scored on. Look at the newest ones, and at light and lens.",
        "Sie sehen anders aus als die, an denen dieser Lernstand bewertet wurde. Neueste Teile, Licht und Objektiv prüfen.",
        "与评估分类器时的工件不同。请检查最新工件、光源和镜头。",
    ),
    "state.fault": ("Look at this", "Bitte ansehen", "请注意"),
    "state.fault-more": (
        "Tell whoever looks after the device: {what}",
        "Der Betreuung des Geräts zeigen: {what}",
        "请告知设备维护人员：{what}",
    ),
    "state.none-passes": ("Every part is rejected", "Jedes Teil wird aussortiert", "所有工件都被剔除"),
    "state.none-passes-more": (
        "No class counts as good yet. Choose under Quality which ones do.",
        "Noch gilt keine Klasse als gut. Unter Qualität auswählen, welche gut sind.",
        "尚未将任何类别设为合格。请在“质量”中选择合格类别。",
    ),
    "state.none-passes-again": (
        "None of the classes that were chosen as good is there any more. Choose again under Quality.",
        "Von den Klassen, die als gut gewählt wurden, gibt es keine mehr. Unter Qualität neu auswählen.",
        "所选的合格类别均已不存在。请在“质量”中重新选择。",
    ),
    "state.others": ("and {n} more", "und {n} weitere", "另有 {n} 项"),
    "state.away": ("No connection", "Keine Verbindung", "无连接"),
    "state.away-more": (
        "The device does not answer. Nothing is lost; this page tries again.",
        "Das Gerät antwortet nicht. Nichts geht verloren; diese Seite versucht es weiter.",
        "设备没有响应。数据不会丢失；页面会继续尝试连接。",
    ),
    # label
    "label.title": ("What is this?", "Was ist das?", "这是什么？"),
    "label.picture": ("Picture to label", "Bild zum Zuordnen", "待标注图像"),
    "label.stage": (
        "The picture. Plus and minus zoom, arrows move, zero shows all of it.",
        "Das Bild. Plus und Minus zoomen, Pfeile verschieben, Null zeigt alles.",
        "图像。加减键缩放，方向键移动，0 显示全部。",
    ),
    "label.empty": ("Nothing waits for you.", "Zurzeit gibt es nichts zuzuordnen.", "没有待标注的图像。"),
    "label.empty-more": (
        "What is new or unclear appears here. Any part on the page “Now” can be labelled too.",
        "Neues oder Unklares erscheint hier. Auch jedes Teil auf der Seite „Jetzt“ lässt sich zuordnen.",
        "新的或不确定的图像会出现在这里。“实时”页面上的任何工件也可以标注。",
    ),
    "label.unseen": (
        "This picture could not be loaded.",
        "Dieses Bild konnte nicht geladen werden.",
        "无法加载此图像。",
    ),
    "label.unseen-more": (
        "What nobody has seen cannot be labelled. “Not sure” goes on to the next.",
        "Was niemand gesehen hat, lässt sich nicht zuordnen. „Nicht sicher“ führt zum nächsten.",
        "未看到的图像无法标注。点“不确定”可继续下一张。",
    ),
    "label.load-again": ("Try again", "Nochmal versuchen", "重试"),
    "label.where": ("Where?", "Wo?", "判断依据"),
    "label.zoom-in": ("Zoom in", "Vergrößern", "放大"),
    "label.zoom-out": ("Zoom out", "Verkleinern", "缩小"),
    "label.zoom-fit": ("Show all of it", "Ganz zeigen", "显示全部"),
    "label.alike": ("Pictures that look the same", "Bilder, die gleich aussehen", "相似图像"),
    "label.together": ("+{n} alike: label together", "+{n} ähnliche: zusammen zuordnen", "+{n} 张相似：一起标注"),
    "label.together-on": ("{n} together", "{n} zusammen", "{n} 张一起"),
    "label.take-out": (
        "Alike, number {n}: take out or in",
        "Ähnliches Bild {n}: weglassen oder dazunehmen",
        "第 {n} 张相似图像：移出或加入",
    ),
    "label.classes": ("Classes", "Klassen", "类别"),
    "label.new": ("New defect…", "Neuer Fehler…", "新缺陷…"),
    "label.new-title": ("A new defect", "Ein neuer Fehler", "新缺陷"),
    "label.new-name": ("Or type its name", "Oder Namen eintippen", "或输入名称"),
    "label.new-save": ("Save", "Speichern", "保存"),
    "label.suggestions": ("Usual names", "Übliche Namen", "常用名称"),
    "label.unsure": ("Not sure", "Nicht sicher", "不确定"),
    "label.take-back": ("Take back", "Zurücknehmen", "撤回"),
    "label.skip": ("Next", "Weiter", "下一张"),
    "label.walk": ("← List: {n} of {count}", "← Liste: {n} von {count}", "← 列表：第 {n} 张，共 {count} 张"),
    "label.walk-back": ("Back to the list", "Zurück zur Liste", "返回列表"),
    "label.walked": ("That was the last one.", "Das war das letzte Bild.", "这是最后一张。"),
    "label.undo": ("Undo", "Rückgängig", "撤销"),
    "why.unlike": ("Unlike anything known", "Mit nichts Bekanntem zu vergleichen", "与已知类别都不像"),
    "why.between": (
        "Between {first} and {second}",
        "Zwischen {first} und {second}",
        "介于“{first}”与“{second}”之间",
    ),
    "why.young": (
        "{first}? Few labels yet",
        "{first}? Erst wenige Bilder",
        "是“{first}”吗？标注还很少",
    ),
    "why.check": ("Spot check", "Stichprobe", "抽检"),
    "why.other": ("A question", "Eine Frage", "请确认"),
    "why.labelled": ("Labelled {name}", "Zugeordnet: {name}", "已标注：{name}"),
    "why.picked": ("Picked by hand", "Von Hand gewählt", "手动选择"),
    "why.unsure": ("Somebody was not sure", "Jemand war nicht sicher", "有人不确定"),
    "why.not-known": ("The head does not know this.", "Das kennt das Gerät nicht.", "设备无法识别。"),
    "why.says": (
        "The head says {name}, {sure} sure.",
        "Das Gerät sagt {name}, zu {sure} sicher.",
        "设备判断：{name}，置信度 {sure}。",
    ),
    "why.left-out": (
        "A head that never saw the part takes it for {name}, {sure} sure.",
        "Ein Lernstand, der das Teil nie gesehen hat, hält es für {name}, zu {sure} sicher.",
        "未见过该工件的分类器判为 {name}，置信度 {sure}。",
    ),
    "why.left-out-unknown": (
        "A head that never saw the part does not know it; nearest is {name}.",
        "Ein Lernstand, der das Teil nie gesehen hat, kennt es nicht; am nächsten ist {name}.",
        "未见过该工件的分类器无法识别；最接近 {name}。",
    ),
    "js.taken-back": ("✓ label taken back", "✓ Zuordnung zurückgenommen", "✓ 标注已撤回"),
    "js.walk-lost": (
        "The list is not as it was any more: open it again.",
        "Die Liste ist nicht mehr, wie sie war: bitte neu öffnen.",
        "列表已变化，请重新打开。",
    ),
    "js.saving": ("saving…", "wird gespeichert…", "正在保存…"),
    "js.saving-n": ("saving {n}…", "{n} werden gespeichert…", "正在保存 {n} 个…"),
    "js.saved": ("✓ saved: {name}", "✓ gespeichert: {name}", "✓ 已保存：{name}"),
    "js.saved-n": ("✓ saved: {n} × {name}", "✓ gespeichert: {n} × {name}", "✓ 已保存：{n} × {name}"),
    "js.saved-unsure": (
        "✓ noted: not sure; asked again last",
        "✓ notiert: nicht sicher; kommt zuletzt wieder",
        "✓ 已记录：不确定；最后会再次询问",
    ),
    "js.undone": (
        "✓ taken back, as if it had never been learned",
        "✓ zurückgenommen, als wäre es nie gelernt worden",
        "✓ 已撤销，如同从未学习过",
    ),
    "js.not-saved": ("Not saved: {why}", "Nicht gespeichert: {why}", "未保存：{why}"),
    "js.not-undone": ("Not taken back: {why}", "Nicht zurückgenommen: {why}", "未撤销：{why}"),
    "js.not-yet": (
        "Not saved yet: {n}. Sent again until the device answers.",
        "Noch nicht gespeichert: {n}. Wird gesendet, bis das Gerät antwortet.",
        "尚未保存 {n} 个；将重复发送，直到设备响应。",
    ),
    "js.meanwhile": (
        "Labelled {name} meanwhile, by {who}",
        "Inzwischen zugeordnet: {name}, von {who}",
        "期间已由 {who} 标注为：{name}",
    ),
    "js.meanwhile-other": ("Labelled {name} meanwhile", "Inzwischen zugeordnet: {name}", "期间已被标注为：{name}"),
    "js.meanwhile-undone": (
        "Taken back meanwhile, by {who}",
        "Inzwischen zurückgenommen, von {who}",
        "期间已由 {who} 撤销",
    ),
    "js.meanwhile-undone-other": ("Taken back meanwhile", "Inzwischen zurückgenommen", "期间已被撤销"),
    "js.left": (
        "Not saved, of the page before: {n} ({why})",
        "Nicht gespeichert, von der vorigen Seite: {n} ({why})",
        "上一页有 {n} 个未保存（{why}）",
    ),
    "js.left-other": (
        "somebody else is logged in now",
        "jetzt ist jemand anders angemeldet",
        "现在登录的是其他人",
    ),
    "js.left-undo": (
        "an undo did not reach the device",
        "ein „Rückgängig“ hat das Gerät nicht erreicht",
        "有一次撤销未送达设备",
    ),
    "js.saved-left": (
        "✓ saved: {n} of the page before",
        "✓ gespeichert: {n} von der vorigen Seite",
        "✓ 已保存上一页的 {n} 个",
    ),
    "js.no-answer": ("the device does not answer", "das Gerät antwortet nicht", "设备没有响应"),
    "js.change-title": ("Change {name}", "{name} ändern", "更改 {name}"),
    "js.late": (
        "The device has not answered yet. This page waits for it; leave it open.",
        "Das Gerät hat noch nicht geantwortet. Diese Seite wartet darauf; bitte offen lassen.",
        "设备尚未响应。页面正在等待，请勿关闭。",
    ),
    # what a refused request is answered with, by its status; what follows in brackets is the device's own words
    "refused.400": ("this cannot be done", "das geht so nicht", "无法执行"),
    "refused.401": ("name and PIN do not fit", "Name und PIN passen nicht", "用户名与PIN不符"),
    "refused.403": ("your account may not do this", "dieses Konto darf das nicht", "此账户无权执行"),
    "refused.404": ("this is not kept here any more", "das ist hier nicht mehr vorhanden", "此处已不存在"),
    "refused.409": (
        "it does not go with what is there already",
        "es passt nicht zu dem, was schon da ist",
        "与现有内容冲突",
    ),
    "refused.408": ("it did not arrive in time", "es kam nicht rechtzeitig an", "未能及时送达"),
    "refused.413": ("this is too large", "das ist zu groß", "内容过大"),
    "refused.422": ("something is missing or wrong", "etwas fehlt oder stimmt nicht", "内容缺失或有误"),
    "refused.429": (
        "too many tries; wait a minute",
        "zu viele Versuche; eine Minute warten",
        "尝试过多，请稍等一分钟",
    ),
    "refused.500": ("the device made a mistake", "Fehler im Gerät", "设备出错"),
    "refused.503": ("the device is not ready yet", "das Gerät ist noch nicht bereit", "设备尚未就绪"),
    "refused.507": ("the disk is full", "der Speicher ist voll", "存储已满"),
    "js.name-it": ("Give it a name.", "Bitte einen Namen geben.", "请输入名称。"),
    "js.defects": (
        "scratch|dent|crack|stain|pore|burr|chip|rust",
        "Kratzer|Delle|Riss|Fleck|Pore|Grat|Ausbruch|Rost",
        "划痕|凹痕|裂纹|脏污|气孔|毛刺|崩缺|锈蚀",
    ),
    "js.unsaved": ("Not saved yet.", "Noch nicht gespeichert.", "尚未保存。"),
    "js.chosen-since": (
        "Not saved: what is rejected was changed meanwhile. This is how it is now.",
        "Nicht gespeichert: Was aussortiert wird, wurde inzwischen geändert. So ist es jetzt.",
        "未保存：剔除规则期间已被更改。现在显示的是当前规则。",
    ),
    "js.done": ("✓ done", "✓ erledigt", "✓ 完成"),
    # now
    "now.live": ("The newest part", "Das neueste Teil", "最新工件"),
    "now.heat": (
        "Show where the decision comes from",
        "Zeigen, woher die Entscheidung kommt",
        "显示判断依据的位置",
    ),
    "now.none": ("No part yet", "Noch kein Teil", "还没有工件"),
    "now.hint": (
        "Tap the picture: where does the decision come from?",
        "Bild antippen: Woher kommt die Entscheidung?",
        "点按图像，查看判断依据的位置",
    ),
    "now.sure": ("{sure} sure", "zu {sure} sicher", "置信度 {sure}"),
    "now.rejected-by": ("rejected: defect {defect}", "aussortiert: Fehler {defect}", "已剔除：缺陷概率 {defect}"),
    "now.passed-by": ("passes: defect {defect}", "in Ordnung: Fehler {defect}", "合格：缺陷概率 {defect}"),
    "now.parts": ("Parts", "Teile", "工件"),
    "now.rejects": ("Rejects", "Aussortiert", "剔除"),
    "now.unknown": ("Unknown", "Unbekannt", "未知"),
    "now.ask": ("{n} wait for an answer", "{n} warten auf eine Antwort", "{n} 个待确认"),
    "now.labels": ("Labels", "Zuordnungen", "标注"),
    "now.since": ("This shift, since {time}", "Diese Schicht, seit {time}", "本班次，自 {time}"),
    "now.release": ("Release", "Release", "发布版本"),
    "now.head": ("Head", "Lernstand", "分类器"),
    "now.head-is": ("{number}, {state}", "{number}, {state}", "{number}，{state}"),
    "now.camera": ("Camera", "Kamera", "相机"),
    "now.fleet": ("Fleet", "Flotte", "设备群"),
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
        "最近的工件：点按即可标注",
    ),
    "now.asks": ("asks", "fragt", "待确认"),
    "now.labelled": ("labelled", "zugeordnet", "已标注"),
    "now.labelled-said": (
        "labelled; the device said {name}, {sure}",
        "zugeordnet; das Gerät sagte {name}, {sure}",
        "已标注；设备判断为 {name}，{sure}",
    ),
    "now.labelled-unknown": (
        "labelled; the device did not know it",
        "zugeordnet; das Gerät kannte es nicht",
        "已标注；设备无法识别",
    ),
    "now.provisional": ("provisional", "vorläufig", "试用"),
    "now.confirmed": ("confirmed", "bestätigt", "已确认"),
    "now.live-camera": ("live, {n} frames", "läuft, {n} Bilder", "正常，{n} 帧"),
    "now.camera-opening": ("opening: {name}", "wird geöffnet: {name}", "正在打开：{name}"),
    "now.camera-lost": ("lost: {name}", "ausgefallen: {name}", "已断开：{name}"),
    "now.camera-ended": ("at its end: {name}", "zu Ende: {name}", "已结束：{name}"),
    "now.good": ("Good", "Gut", "合格"),
    # learned
    "learned.news": ("The last label", "Die letzte Zuordnung", "最近一次标注"),
    "learned.masters": ("Master parts", "Musterteile", "标准样件"),
    "learned.masters-right": (
        "{right} of {of} are told rightly.",
        "{right} von {of} werden richtig erkannt.",
        "{of} 个中有 {right} 个识别正确。",
    ),
    "learned.masters-undone": (
        "{n} of them are told worse since labels were taken back here.",
        "{n} davon werden schlechter erkannt, seit hier Zuordnungen zurückgenommen wurden.",
        "自本机撤销标注以来，其中有 {n} 个识别变差。",
    ),
    "learned.masters-more": (
        "{n} more are told wrongly.",
        "{n} weitere werden falsch erkannt.",
        "另有 {n} 个识别错误。",
    ),
    "learned.masters-strange": (
        "No class is called {name}: the parts in that folder check nothing.",
        "Keine Klasse heißt {name}: Die Teile in diesem Ordner prüfen nichts.",
        "没有名为“{name}”的类别：该文件夹中的样件不起检验作用。",
    ),
    "learned.masters-wrong": (
        "{file} is {wanted}, told as {shown}",
        "{file} ist {wanted}, erkannt als {shown}",
        "{file} 应为“{wanted}”，识别为“{shown}”",
    ),
    "learned.picture": ("Picture of {name}", "Bild: {name}", "图像：{name}"),
    "learned.live": (
        "Your label “{name}” is live.",
        "Die Zuordnung „{name}“ ist wirksam.",
        "标注“{name}”已生效。",
    ),
    "learned.taken-back": (
        "Your label “{name}” is kept, but the new head did not go live: it would have been worse.",
        "Die Zuordnung „{name}“ bleibt, aber der neue Lernstand wird nicht verwendet: Er wäre schlechter.",
        "标注“{name}”已保存，但新分类器未启用：启用后效果会变差。",
    ),
    "learned.on-trial": (
        "Your label “{name}” is live for now; its trial is under way.",
        "Die Zuordnung „{name}“ gilt vorläufig; der neue Lernstand wird noch geprüft.",
        "标注“{name}”暂时生效；新分类器正在验证。",
    ),
    "learned.undone": (
        "A label was taken back, as if it had never been learned.",
        "Eine Zuordnung wurde zurückgenommen, als wäre sie nie gelernt worden.",
        "已撤销一个标注，如同从未学习过。",
    ),
    "learned.undoing": (
        "A label was taken back and decides no more; the head without it is being scored.",
        "Eine Zuordnung wurde zurückgenommen und gilt nicht mehr; der Lernstand ohne sie wird noch geprüft.",
        "已撤销一个标注，它不再起作用；正在验证没有它的分类器。",
    ),
    "learned.undone-alone": (
        "A label was taken back and decides no more. What else came since did not go live: it would have been worse.",
        "Eine Zuordnung wurde zurückgenommen und gilt nicht mehr. Was sonst seither kam, wird nicht verwendet: "
        "Es wäre schlechter.",
        "已撤销一个标注，它不再起作用。此后的其他更改未启用：启用后效果会变差。",
    ),
    "learned.nothing": (
        "Nothing was labelled here yet.",
        "Hier wurde noch nichts zugeordnet.",
        "本机还没有标注。",
    ),
    "learned.no-release": ("There is no release yet.", "Es gibt noch kein Release.", "尚无发布版本。"),
    "learned.effect-new": (
        "{name} is now recognised {share} of the time; it was not known before.",
        "{name} wird jetzt zu {share} erkannt; vorher war es unbekannt.",
        "“{name}”的识别率现为 {share}；此前无法识别。",
    ),
    "learned.effect-up": (
        "{name}: {share}, before {before}.",
        "{name}: {share}, vorher {before}.",
        "{name}：{share}，此前 {before}。",
    ),
    "learned.effect-same": ("The score is as before.", "Die Trefferquote ist wie vorher.", "识别率与此前相同。"),
    "learned.effect-few": (
        "Label pictures of another part of it, and it gets a score.",
        "Noch ein anderes Teil davon zuordnen, dann gibt es eine Trefferquote.",
        "再标注一个同类的其他工件，即可给出识别率。",
    ),
    "learned.score": ("Honest score", "Ehrliche Trefferquote", "真实识别率"),
    "learned.score-caption": (
        "How often each class is recognised on parts that were never learned. The thin line is where it will likely lie, the tall mark where it was before.",
        "Wie oft jede Klasse an nie gelernten Teilen erkannt wird. Dünne Linie: wahrscheinlicher Bereich; hoher Strich: Wert davor.",
        "各类别在从未学习过的工件上的识别率。细线为可能范围，竖线为此前的值。",
    ),
    "learned.bar": ("As a bar", "Als Balken", "条形图"),
    "learned.now": ("Now", "Jetzt", "现在"),
    "learned.before.yesterday": ("Yesterday", "Gestern", "昨天"),
    "learned.before.first": ("First today", "Zuerst heute", "今天首次"),
    "learned.before.none": ("Before", "Vorher", "此前"),
    "learned.earlier.yesterday": ("yesterday {share}", "gestern {share}", "昨天 {share}"),
    "learned.earlier.first": ("first today {share}", "zuerst heute {share}", "今天首次 {share}"),
    "learned.range": ("likely {low} to {high}", "wahrscheinlich {low} bis {high}", "可能为 {low} 至 {high}"),
    "learned.one-part": ("one part only", "nur ein Teil", "只有一个工件"),
    "learned.rests": (
        "It rests on {samples} pictures of {groups} parts.",
        "Grundlage: {samples} Bilder von {groups} Teilen.",
        "基于 {groups} 个工件的 {samples} 张图像。",
    ),
    "learned.unjudged": (
        "{n} more show a class that only one part has shown so far: learned from but not judged.",
        "{n} weitere zeigen eine Klasse, von der es erst ein Teil gibt: gelernt, aber nicht bewertet.",
        "另有 {n} 张所属类别目前只有一个工件：已学习但未评估。",
    ),
    "learned.no-two-parts": (
        "Not known yet: no class has been shown by two parts.",
        "Noch nicht bekannt: Von keiner Klasse gibt es zwei Teile.",
        "尚不可知：没有任何类别有两个工件。",
    ),
    "learned.summed": (
        "{n} more of the release are learned from but not judged.",
        "{n} weitere des Releases sind gelernt, aber nicht bewertet.",
        "发布版本中另有 {n} 张已学习但未评估。",
    ),
    "learned.no-score": (
        "The score comes with the first trial: every part is judged by a head that never learned it.",
        "Die Trefferquote kommt mit der ersten Prüfung: Jedes Teil wird ohne das beurteilt, was von ihm gelernt wurde.",
        "首次验证后给出识别率：每个工件都由从未学习过它的分类器判断。",
    ),
    "learned.outlook": ("Would more labels help?", "Helfen mehr Zuordnungen?", "增加标注有用吗？"),
    "learned.outlook-wait": (
        "Working it out; this takes some seconds.",
        "Wird berechnet; das dauert einige Sekunden.",
        "正在计算，需要几秒钟。",
    ),
    "learned.outlook-helps": (
        "Ten more labels of {name} would help most: about {gain} points (likely {low} to {high}).",
        "Zehn weitere Zuordnungen von {name} helfen am meisten: etwa {gain} Prozentpunkte (wahrscheinlich {low} bis {high}).",
        "再标注 10 张“{name}”帮助最大：约提高 {gain} 个百分点（可能为 {low} 至 {high}）。",
    ),
    "learned.outlook-enough": (
        "More labels would hardly help: less than one point.",
        "Mehr Zuordnungen helfen kaum: weniger als ein Prozentpunkt.",
        "增加标注几乎没有帮助：不到 1 个百分点。",
    ),
    "learned.outlook-few": (
        "Label {names} first: fewer than {n} parts are too few to say what more labels bring.",
        "Zuerst {names} zuordnen: Weniger als {n} Teile sind zu wenige, um zu sagen, was weitere Zuordnungen bringen.",
        "请先标注 {names}：不足 {n} 个工件，无法判断增加标注的效果。",
    ),
    "learned.outlook-none": (
        "Nothing can be said yet: label parts of two classes, two parts of each.",
        "Noch lässt sich nichts sagen: zwei Klassen zuordnen, je zwei Teile.",
        "目前无法判断：请标注两个类别、每类两个工件。",
    ),
    "learned.more-labels": ("Labels", "Zuordnungen", "标注数"),
    "learned.would-be": ("Score would be", "Trefferquote wäre", "预计识别率"),
    "learned.as-now": ("as now", "wie jetzt", "当前"),
    "learned.added": ("+{n} of each class", "+{n} je Klasse", "每类 +{n}"),
    "learned.times": ("{n} times as many", "{n}-mal so viele", "{n} 倍"),
    "learned.one-group": (
        "Not judged, as only one part shows it: {names}.",
        "Nicht bewertet, da nur ein Teil es zeigt: {names}.",
        "只有一个工件，未评估：{names}。",
    ),
    "learned.suspects": ("Labels to look at again", "Zuordnungen zum Nachprüfen", "需要复查的标注"),
    "learned.suspects-say": (
        "Labels that disagree with everything else: {n}. The head may be the one that errs.",
        "Zuordnungen, die allem anderen widersprechen: {n}. Vielleicht irrt auch das Gerät.",
        "有 {n} 个标注与其他标注矛盾，也可能是设备判断有误。",
    ),
    "learned.suspect": (
        "Labelled {labelled}, looks like {looks_like}.",
        "Zugeordnet als {labelled}, sieht aus wie {looks_like}.",
        "标注为“{labelled}”，看起来像“{looks_like}”。",
    ),
    "learned.confirm": ("{name} is right", "{name} stimmt", "“{name}”正确"),
    "learned.correct": ("It is {name}", "Es ist {name}", "应为“{name}”"),
    "learned.no-suspects": (
        "None: all labels agree with each other.",
        "Keine: Alle Zuordnungen passen zusammen.",
        "无：所有标注相互一致。",
    ),
    "learned.suspects-elsewhere": (
        "Of the release or other devices, without pictures here: {n} more.",
        "Weitere aus dem Release oder von anderen Geräten, ohne Bild hier: {n}.",
        "另有 {n} 个来自发布版本或其他设备，图像不在本机。",
    ),
    "learned.labels": ("Who labelled what", "Wer was zugeordnet hat", "标注记录"),
    "learned.what": ("Label", "Zuordnung", "标注"),
    "learned.who": ("Who, when", "Wer, wann", "人员、时间"),
    "learned.nobody": ("no name given", "ohne Namen", "未署名"),
    "learned.withdrawn": ("{name} taken back", "{name} zurückgenommen", "已撤销“{name}”"),
    "learned.changed": ("{before} became {name}", "{before} wurde {name}", "“{before}”改为“{name}”"),
    "learned.now-of": ("{name} (now {into})", "{name} (jetzt {into})", "{name}（现为{into}）"),
    "learned.confirmed-label": ("{name} confirmed", "{name} bestätigt", "已确认“{name}”"),
    "learned.erase": ("Delete the picture", "Bild löschen", "删除图片"),
    "learned.erase-ask": (
        "Delete this picture for good? Its label no longer counts.",
        "Dieses Bild endgültig löschen? Seine Zuordnung zählt dann nicht mehr.",
        "要永久删除这张图片吗？其标注将不再生效。",
    ),
    "learned.no-labels": ("No labels yet.", "Noch keine Zuordnungen.", "还没有标注。"),
    "learned.heads": ("Heads that served here", "Lernstände auf diesem Gerät", "本机用过的分类器"),
    "learned.head": ("Head", "Lernstand", "分类器"),
    "learned.of-labels": ("{n} labelled pictures", "{n} zugeordnete Bilder", "{n} 张标注图像"),
    "learned.compare": ("Against the one before", "Gegenüber dem davor", "与前一个相比"),
    "learned.same": ("no class changed", "keine Klasse verändert", "各类别无变化"),
    "learned.restore": ("Roll back", "Wiederherstellen", "回退"),
    "learned.restore-ask": (
        "Go back to head {number}? {n} labels given here since are taken back; each can be given again.",
        "Lernstand {number} wiederherstellen? {n} Zuordnungen, die hier seither gemacht wurden, werden zurückgenommen; jede lässt sich wieder machen.",
        "回退到分类器 {number}？此后在本机的 {n} 个标注将被撤销，可以重新标注。",
    ),
    "learned.serves": ("serves now", "aktiv", "使用中"),
    "outcome.provisional": ("provisional", "vorläufig", "试用"),
    "outcome.confirmed": ("confirmed", "bestätigt", "已确认"),
    "outcome.taken_back": ("taken back", "zurückgenommen", "已撤回"),
    "outcome.superseded": ("superseded", "abgelöst", "已被取代"),
    # why a trial ended as it did: the codes of sdk.reason
    "trial.with-release": (ENGLISH["with-release"], "Das kam mit dem Release.", "随发布版本提供。"),
    "trial.stopped": (
        ENGLISH["stopped"],
        "Das Gerät wurde angehalten, bevor die Prüfung zu Ende war.",
        "验证结束前程序已停止。",
    ),
    "trial.superseded": (
        ENGLISH["superseded"],
        "Eine neuere Zuordnung kam, bevor die Prüfung zu Ende war.",
        "验证结束前有了新的标注。",
    ),
    "trial.too-few": (
        ENGLISH["too-few"],
        "Für eine Trefferquote sind es noch zu wenige Teile.",
        "工件太少，还不能给出识别率。",
    ),
    "trial.first-score": (
        ENGLISH["first-score"],
        "Das ist die erste Trefferquote; es gab nichts zum Vergleichen.",
        "这是首次评估，没有可比较的结果。",
    ),
    "trial.first-head": (ENGLISH["first-head"], "Das ist der erste Lernstand.", "这是第一个分类器。"),
    "trial.own-alone": (
        ENGLISH["own-alone"],
        "Dieser Lernstand richtet sich nach den Zuordnungen dieser Station, von denen der davor wenige oder keine "
        "kannte. Nach den Teilen aller anderen würden nur etwa {share} der neuen Teile von {name} erkannt "
        "(vorher: {before}).",
        "该分类器以本工位的标注为准，之前的分类器没有或只有少数这些标注。按其他所有零件来看，“{name}”的新零件大约只有 {share} 能被识别（此前：{before}）。",
    ),
    "trial.nothing-to-compare": (
        ENGLISH["nothing-to-compare"],
        "Es gab noch nichts zum Vergleichen.",
        "还没有可比较的结果。",
    ),
    "trial.tells-apart": (
        ENGLISH["tells-apart"],
        "{name} wird jetzt von anderen Klassen unterschieden und selbst zu {share} erkannt (vorher: {before}).",
        "现在能将“{name}”与其他类别区分开；“{name}”的识别率为 {share}（此前：{before}）。",
    ),
    "trial.worse": (
        ENGLISH["worse"],
        "Zurückgenommen: {name} würde nur noch zu {share} erkannt (vorher: {before}).",
        "已撤回：“{name}”的识别率会降到 {share}（此前：{before}）。",
    ),
    "trial.less-clear": (
        ENGLISH["less-clear"],
        "Zurückgenommen: {name} wäre weniger eindeutig; etwa {share} der neuen Teile würden richtig erkannt "
        "(vorher: {before}).",
        "已撤回：“{name}”会变得不够明确；新零件的识别率预计约为 {share}（此前：{before}）。",
    ),
    "trial.masters": (
        ENGLISH["masters"],
        "Zurückgenommen: von den Musterteilen von {name} würden nur noch {share} erkannt (vorher: {before}).",
        "已撤回：“{name}”的标准样件的识别率会降到 {share}（此前：{before}）。",
    ),
    "trial.also-knows-price": (
        ENGLISH["also-knows-price"],
        "Neu bekannt: {classes}. Der Preis: {name} wird zu {share} erkannt (vorher: {before}).",
        "新学会：{classes}；代价是“{name}”的识别率为 {share}（此前：{before}）。",
    ),
    "trial.also-knows": (
        ENGLISH["also-knows"],
        "Neu bekannt: {classes}; die anderen so gut wie vorher.",
        "新学会：{classes}；其他类别与此前一样好。",
    ),
    "trial.price": (
        ENGLISH["price"],
        "{name} wird zu {share} erkannt (vorher: {before}).",
        "“{name}”的识别率为 {share}（此前：{before}）。",
    ),
    "trial.not-yet": (
        ENGLISH["not-yet"],
        "Noch nicht erkannt: {classes}; dafür braucht es mehr Zuordnungen.",
        "尚不能识别：{classes}；需要更多标注。",
    ),
    "trial.better": (
        ENGLISH["better"],
        "Die bekannten Klassen werden besser erkannt.",
        "已知类别的识别率提高了。",
    ),
    "trial.as-good": (
        ENGLISH["as-good"],
        "Die bekannten Klassen werden so gut erkannt wie vorher.",
        "已知类别的识别率与此前一样。",
    ),
    "trial.undone": (
        ENGLISH["undone"],
        "Was hier zurückgenommen wurde, zählt nicht mehr.",
        "本机撤销的标注不再起作用。",
    ),
    "trial.undone-alone": (
        ENGLISH["undone-alone"],
        "Was hier zurückgenommen wurde, zählt nicht mehr; auch nicht, was seither kam und abgelehnt wurde.",
        "本机撤销的标注不再起作用；此后被拒绝的更改也不起作用。",
    ),
    "trial.undone-worse": (
        ENGLISH["undone-worse"],
        "Der Preis der Rücknahme: {name} wird nur noch zu {share} erkannt (vorher: {before}).",
        "撤销的代价：“{name}”的识别率只有 {share}（此前：{before}）。",
    ),
    "trial.undone-less-clear": (
        ENGLISH["undone-less-clear"],
        "Der Preis der Rücknahme: {name} ist weniger eindeutig; etwa {share} der neuen Teile werden richtig erkannt "
        "(vorher: {before}).",
        "撤销的代价：“{name}”不够明确；新零件的识别率预计约为 {share}（此前：{before}）。",
    ),
    "trial.undone-masters": (
        ENGLISH["undone-masters"],
        "Der Preis der Rücknahme: schlechter erkannte Musterteile: {times} von {of}.",
        "撤销的代价：{of} 个标准样件中有 {times} 个识别变差。",
    ),
    "trial.shifted": (
        ENGLISH["shifted"],
        "Berücksichtigt ist, dass Bilder dieser Station anders aussehen.",
        "已考虑本工位图像外观的差异。",
    ),
    "trial.own-weight": (
        ENGLISH["own-weight"],
        "Eigene Zuordnungen dieser Station zählen {times}-fach.",
        "本工位自己的标注按 {times} 倍计。",
    ),
    "trial.harm": (
        ENGLISH["harm"],
        "Zuordnungen von {name} passen hier nicht: Hier zugeordnete Teile werden zu {before} erkannt, ohne sie zu {share}.",
        "来自 {name} 的标注不适合本工位：本机标注的工件识别率为 {before}，不用这些标注时为 {share}。",
    ),
    # quality
    "quality.title": ("Quality", "Qualität", "质量"),
    "quality.csv": ("CSV", "CSV", "CSV"),
    "quality.print": ("Print", "Drucken", "打印"),
    "quality.operating": ("What is rejected", "Was aussortiert wird", "剔除规则"),
    "quality.good": ("Good parts are", "Gutteile sind", "合格类别"),
    "quality.by-threshold": (
        "Reject by a threshold that keeps the rate below",
        "Nach einer Schwelle aussortieren, die diese Rate einhält",
        "按阈值剔除，使漏检率不超过下列值",
    ),
    "quality.rate": ("Defects that may pass:", "Fehler, die durchgehen dürfen:", "允许的漏检率："),
    "js.by-class": (
        "Decided by class, without a threshold:",
        "Nach der erkannten Klasse, ohne Schwelle:",
        "按识别出的类别判定，不用阈值：",
    ),
    "js.by-threshold": ("With this threshold:", "Mit dieser Schwelle:", "使用该阈值："),
    "quality.escapes": (
        "defects would pass (escapes)",
        "der Fehler gingen durch (Durchschlupf)",
        "的缺陷会漏检（漏检率）",
    ),
    "quality.overkill": (
        "good parts would be rejected (overkill)",
        "der Gutteile würden aussortiert (Pseudofehler)",
        "的合格品会被误剔除（过杀率）",
    ),
    "quality.threshold": (
        "Reject from a defect probability of",
        "Aussortiert ab einer Fehlerwahrscheinlichkeit von",
        "缺陷概率阈值",
    ),
    "quality.unreachable": (
        "This rate cannot be kept: even rejecting all it can, more defects pass.",
        "Diese Rate lässt sich nicht einhalten: Auch an der strengsten Schwelle gehen mehr Fehler durch.",
        "无法达到该漏检率：即使阈值最严，漏检仍更多。",
    ),
    "quality.lost": (
        "A class that was chosen as good is gone. Its parts may be rejected: choose the good classes again.",
        "Eine als gut gewählte Klasse gibt es nicht mehr. Ihre Teile werden vielleicht aussortiert: gute Klassen neu wählen.",
        "某个被选为合格的类别已不存在，其工件可能被剔除：请重新选择合格类别。",
    ),
    "quality.missing": (
        "Name a good class, and label defects of two parts or more: then the rates can be told.",
        "Eine gute Klasse wählen und Fehler an zwei oder mehr Teilen zuordnen: Dann lassen sich die Raten angeben.",
        "请指定合格类别，并标注至少两个工件的缺陷，之后才能给出漏检率和过杀率。",
    ),
    "quality.stays": (
        "Stays as chosen: by a threshold, {rate} of the defects may pass.",
        "Bleibt wie gewählt: nach einer Schwelle, {rate} der Fehler dürfen durchgehen.",
        "保持所选：按阈值剔除，允许漏检率 {rate}。",
    ),
    "quality.device": ("Device", "Gerät", "设备"),
    "quality.made": ("As of", "Stand", "截至"),
    "quality.rule-class": (
        "What is taken for no good class is rejected.",
        "Was für keine gute Klasse gehalten wird, wird aussortiert.",
        "未判为合格类别的工件一律剔除。",
    ),
    "quality.rule-threshold": (
        "Rejected from a defect probability of {threshold} on: {rate} of the defects may pass.",
        "Aussortiert ab einer Fehlerwahrscheinlichkeit von {threshold}: {rate} der Fehler dürfen durchgehen.",
        "缺陷概率达到 {threshold} 即剔除：允许漏检率 {rate}。",
    ),
    "quality.save": ("Use this from now on", "Ab jetzt anwenden", "从现在起使用"),
    "quality.engineers-only": (
        "An engineer or admin may change this.",
        "Ändern darf das nur, wer die Rolle Technik oder Admin hat.",
        "只有工程师或管理员可以修改。",
    ),
    "quality.confusion": ("What is taken for what", "Verwechslungen", "混淆矩阵"),
    "quality.confusion-caption": (
        "Rows are what it is, columns what it was taken for. Left-out parts only.",
        "Zeilen: was es ist; Spalten: wofür es gehalten wurde. Nur nie gelernte Teile.",
        "行：实际类别；列：判断结果。仅含从未学习过的工件。",
    ),
    "quality.slices": (
        "By camera, shift, lot and origin",
        "Nach Kamera, Schicht, Charge und Herkunft",
        "按相机、班次、批次和来源",
    ),
    "quality.slice": ("Which", "Welche", "分组"),
    "quality.right": ("Right", "Richtig", "正确率"),
    "quality.parts": ("Parts", "Teile", "工件"),
    "quality.no-slices": (
        "There is only one of each yet.",
        "Bisher gibt es von allem nur eins.",
        "目前各项只有一个，无法比较。",
    ),
    "slice.origin": ("origin", "Herkunft", "来源"),
    "slice.camera": ("camera", "Kamera", "相机"),
    "slice.lot": ("lot", "Charge", "批次"),
    "slice.shift": ("shift", "Schicht", "班次"),
    "slice.release": ("release", "Release", "发布版本"),
    "slice.station": ("this station", "diese Station", "本工位"),
    "quality.curve": ("Score with each head", "Trefferquote je Lernstand", "各分类器的识别率"),
    "quality.curve-says": (
        "Balanced accuracy of {n} heads, from {first} to {last}.",
        "Mittlere Trefferquote von {n} Lernständen, von {first} bis {last}.",
        "{n} 个分类器的平均识别率，从 {first} 到 {last}。",
    ),
    "quality.curve-caption": (
        "Every confirmed head of this release, oldest first; below, the labelled pictures of the first and the last. "
        "The band is where it likely lies.",
        "Jeder bestätigte Lernstand dieses Releases, der älteste zuerst; darunter, wie viele zugeordnete Bilder der erste "
        "und der letzte hatten. Das Band zeigt, wo sie wahrscheinlich liegt.",
        "本发布版本中每个已确认的分类器，由旧到新；下方为首尾两个所用的标注图像数。色带为可能范围。",
    ),
    "quality.no-curve": (
        "It begins with the second scored head.",
        "Beginnt mit dem zweiten bewerteten Lernstand.",
        "从第二个已评估的分类器开始。",
    ),
    "quality.drift": ("Do parts still look alike?", "Sehen die Teile noch gleich aus?", "工件外观是否一致？"),
    "quality.drift-alarm": (
        "No: they look different from those this head was scored on.",
        "Nein: Sie sehen anders aus als die, an denen dieser Lernstand bewertet wurde.",
        "否：与评估分类器时的工件不同。",
    ),
    "quality.no-drift": (
        "Yes, over the last {parts} parts.",
        "Ja, über die letzten {parts} Teile.",
        "是，最近 {parts} 个工件一致。",
    ),
    "quality.drift-none": (
        "Not watched yet: no part has come since this head was scored.",
        "Noch nicht beobachtet: Seit der Bewertung kam kein Teil.",
        "尚未监测：评估后还没有新工件。",
    ),
    "quality.evidence": (
        "Evidence {n}; an alarm from {threshold}.",
        "Evidenz {n}; Alarm ab {threshold}.",
        "变化证据 {n}；达到 {threshold} 时报警。",
    ),
    "quality.strangest": ("The strangest of them:", "Die auffälligsten:", "其中最异常的："),
    "quality.strange": ("Strange part {n}", "Auffälliges Teil {n}", "异常工件 {n}"),
    "quality.cell": (
        "{n} labelled “{truth}”, taken for “{said}”: show them",
        "{n} als „{truth}“ zugeordnet, gehalten für „{said}“: zeigen",
        "{n} 张标注为“{truth}”、判为“{said}”：查看",
    ),
    "quality.row": ("{name}: show all", "{name}: alle zeigen", "{name}：查看全部"),
    "quality.share": ("{what}: {share}, show them", "{what}: {share}, zeigen", "{what}：{share}，查看"),
    "quality.tap": (
        "Tap a figure to see the pictures behind it.",
        "Zahl antippen: die Bilder dahinter.",
        "点按数字可查看对应的图像。",
    ),
    "js.behind": ("{n} of {of} pictures", "{n} von {of} Bildern", "{of} 张中的 {n} 张"),
    # the pictures behind a figure
    "behind.cell": (
        "Labelled “{truth}”, taken for “{said}”",
        "Als „{truth}“ zugeordnet, für „{said}“ gehalten",
        "标注为“{truth}”，判为“{said}”",
    ),
    "behind.cell-right": (
        "Labelled “{truth}”, and recognised",
        "Als „{truth}“ zugeordnet und erkannt",
        "标注为“{truth}”，识别正确",
    ),
    "behind.recall": (
        "All labelled “{truth}”",
        "Alles, was als „{truth}“ zugeordnet ist",
        "所有标注为“{truth}”的图像",
    ),
    "behind.escapes": ("Defects that would pass", "Fehler, die durchgingen", "会漏检的缺陷"),
    "behind.overkill": (
        "Good parts that would be rejected",
        "Gutteile, die aussortiert würden",
        "会被误剔除的合格品",
    ),
    "behind.slice": ("{kind} {name}", "{kind} {name}", "{kind} {name}"),
    "behind.count": ("{n} of {of} pictures", "{n} von {of} Bildern", "{of} 张图像中的 {n} 张"),
    "behind.right": (
        "{n} pictures: {right} right, {wrong} wrong; the wrong ones come first.",
        "{n} Bilder: {right} richtig, {wrong} falsch; die falschen zuerst.",
        "{n} 张图像：{right} 张正确，{wrong} 张错误；错误的在前。",
    ),
    "behind.head": (
        "As head {number} decides that never saw the part itself.",
        "So entscheidet Lernstand {number}, der das Teil selbst nie gesehen hat.",
        "由未见过该工件的分类器 {number} 判断。",
    ),
    "behind.rule-class": (
        "Good parts are {good}; what is taken for no good class is rejected.",
        "Gutteile sind {good}; was für keine gute Klasse gehalten wird, wird aussortiert.",
        "合格类别：{good}；未判为合格类别的一律剔除。",
    ),
    "behind.rule-threshold": (
        "Good parts are {good}; by the threshold with which {rate} of the defects may pass.",
        "Gutteile sind {good}; nach der Schwelle, bei der {rate} der Fehler durchgehen dürfen.",
        "合格类别：{good}；按允许漏检率 {rate} 的阈值。",
    ),
    "behind.other-rule": (
        "This is not the rule in force now.",
        "Das ist nicht die Regel, die jetzt gilt.",
        "这不是当前生效的规则。",
    ),
    "behind.newer": (
        "Head {number} has learned since; of it there are {n}.",
        "Inzwischen hat Lernstand {number} gelernt; bei ihm sind es {n}.",
        "分类器 {number} 已在此后学习；按它为 {n} 张。",
    ),
    "behind.newer-right": (
        "Head {number} has learned since: {n} pictures, {right} right, {wrong} wrong.",
        "Inzwischen hat Lernstand {number} gelernt: {n} Bilder, {right} richtig, {wrong} falsch.",
        "分类器 {number} 已在此后学习：{n} 张图像，{right} 张正确，{wrong} 张错误。",
    ),
    "behind.newer-one": (
        "Head {number} has learned since; these two are one class now.",
        "Inzwischen hat Lernstand {number} gelernt; diese beiden sind jetzt eine Klasse.",
        "分类器 {number} 已在此后学习；这两个类别现已合并为一类。",
    ),
    "behind.one-class": (
        "these two are one class now",
        "diese beiden sind jetzt eine Klasse",
        "这两个类别现已合并为一类",
    ),
    "behind.newer-none": (
        "Head {number} has learned since; this figure cannot be told of it.",
        "Inzwischen hat Lernstand {number} gelernt; von ihm gibt es diese Zahl nicht.",
        "分类器 {number} 已在此后学习；它没有此数字。",
    ),
    "behind.show-newer": ("Show these", "Diese zeigen", "查看这些"),
    "behind.not-held": (
        "The figures of head {number} cannot be told any more. These are of head {now}.",
        "Die Zahlen von Lernstand {number} sind nicht mehr da. Diese sind von Lernstand {now}.",
        "分类器 {number} 的数据已不可用。现在显示的是分类器 {now}。",
    ),
    "behind.none": (
        "No picture is behind this figure.",
        "Hinter dieser Zahl steht kein Bild.",
        "此数字没有对应的图像。",
    ),
    "behind.no-figure": (
        "This figure cannot be told ({why}).",
        "Diese Zahl lässt sich nicht angeben ({why}).",
        "无法给出此数字（{why}）。",
    ),
    "behind.back": ("Back to Quality", "Zurück zu Qualität", "返回质量"),
    "behind.open": (
        "Picture {n}: labelled {name}. Look closely, or say something else",
        "Bild {n}: {name}. Genau ansehen oder anders zuordnen",
        "图像 {n}：{name}。放大查看或重新标注",
    ),
    "behind.labelled": ("Labelled {name}", "Zugeordnet: {name}", "标注：{name}"),
    "behind.taken-for": ("taken for {name}, {sure}", "gehalten für {name}, {sure}", "判为 {name}，{sure}"),
    "behind.unknown": (
        "taken for unknown; nearest {name}, {sure}",
        "unbekannt; am nächsten {name}, {sure}",
        "判为未知；最接近 {name}，{sure}",
    ),
    "behind.now": ("now {name}", "jetzt {name}", "现为 {name}"),
    "behind.now-none": ("label taken back", "Zuordnung zurückgenommen", "标注已撤回"),
    "behind.by": ("{who}, {when}", "{who}, {when}", "{who}，{when}"),
    "behind.taken": ("taken {when}", "aufgenommen {when}", "拍摄于 {when}"),
    "behind.part": ("part {name}", "Teil {name}", "工件 {name}"),
    "behind.of": ("{kind} {name}", "{kind} {name}", "{kind} {name}"),
    "behind.where.release": (
        "The picture came with the release and is not on this device.",
        "Das Bild kam mit dem Release und ist nicht auf diesem Gerät.",
        "图像随发布版本而来，不在本设备上。",
    ),
    "behind.where.device": (
        "The picture stayed on {device}.",
        "Das Bild blieb auf {device}.",
        "图像保留在 {device} 上。",
    ),
    "behind.where.gone": (
        "The picture is kept no longer.",
        "Das Bild ist nicht mehr vorhanden.",
        "图像已不再保留。",
    ),
    "behind.take-back": ("Take the label back", "Zuordnung zurücknehmen", "撤回标注"),
    "behind.take-back-ask": (
        "Take the label back? It decides no more, as if it had never been given.",
        "Zuordnung zurücknehmen? Sie gilt dann nicht mehr, als hätte es sie nie gegeben.",
        "撤回此标注？它将不再起作用，如同从未标注过。",
    ),
    "behind.pages": ("Pages of the list", "Seiten der Liste", "列表分页"),
    "behind.range": (
        "{first} to {last} of {count}",
        "{first} bis {last} von {count}",
        "第 {first}–{last} 张，共 {count} 张",
    ),
    "behind.before": ("← Before", "← Vorige", "← 上一页"),
    "behind.after": ("Next →", "Nächste →", "下一页 →"),
    # settings
    "settings.look": ("Look", "Aussehen", "外观"),
    "settings.language": ("Language", "Sprache", "语言"),
    "settings.theme": ("Brightness", "Helligkeit", "显示模式"),
    "settings.auto": ("as the screen", "wie das System", "跟随系统"),
    "settings.light": ("bright", "hell", "明亮"),
    "settings.dark": ("dark", "dunkel", "深色"),
    "settings.order": ("Class buttons", "Klassenknöpfe", "类别按钮"),
    "settings.recent": ("last used first", "zuletzt benutzte zuerst", "最近使用优先"),
    "settings.fixed": ("always in one place", "immer am selben Platz", "固定位置"),
    "settings.who": ("Who is here", "Wer ist hier", "当前用户"),
    "settings.logged-in": ("{name}, {role}", "{name}, {role}", "{name}，{role}"),
    "settings.logout": ("Log out", "Abmelden", "退出登录"),
    "settings.operator": ("Name written beside labels", "Name neben den Zuordnungen", "标注署名"),
    "settings.no-accounts": (
        "There are no accounts: whoever sits at this device may do everything, and no other machine reaches this page.",
        "Es gibt keine Konten: Wer an diesem Gerät sitzt, darf alles; kein anderer Rechner erreicht diese Seite.",
        "没有账户：在本设备前的任何人都可以执行所有操作，其他计算机无法访问此页面。",
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
    "settings.remove": ("Remove", "Entfernen", "删除"),
    "settings.removed": ("removed", "entfernt", "已删除"),
    "settings.remove-ask": (
        "Remove {name}? The name stays beside earlier labels.",
        "{name} entfernen? Der Name bleibt neben früheren Zuordnungen.",
        "删除 {name}？以前的标注旁仍会保留其名称。",
    ),
    "settings.change": ("New PIN or role…", "Neue PIN oder Rolle…", "新 PIN 或角色…"),
    "settings.new-secret": ("New PIN or password", "Neue PIN oder neues Passwort", "新 PIN 或密码"),
    "settings.change-rule": (
        "Left empty, it stays as it is. Whoever becomes engineer or admin needs a new password. "
        "The person is logged out and can log in again at once.",
        "Leer: Es bleibt, wie es ist. Wer Technik oder Admin wird, braucht ein neues Passwort. "
        "Die Person wird abgemeldet und kann sich gleich wieder anmelden.",
        "留空则不变。成为工程师或管理员需要新密码。该用户会被退出，可立即重新登录。",
    ),
    "settings.own-secret": ("Change PIN or password…", "PIN oder Passwort ändern…", "更改 PIN 或密码…"),
    "settings.old-secret": (
        "PIN or password until now",
        "Bisherige PIN oder bisheriges Passwort",
        "当前 PIN 或密码",
    ),
    "settings.own-rule": (
        "You are logged out everywhere, and log in again with the new one.",
        "Danach überall abgemeldet; neu anmelden mit der neuen PIN oder dem neuen Passwort.",
        "所有地方都会退出，请用新的 PIN 或密码重新登录。",
    ),
    "settings.save": ("Save", "Speichern", "保存"),
    "settings.erase": ("Erase", "Löschen", "抹除"),
    "settings.erase-ask": (
        "Erase {name}? Nothing here will tell any more whose labels these were.",
        "{name} löschen? Danach sagt hier nichts mehr, wessen Zuordnungen es waren.",
        "抹除 {name}？此后无法得知这些标注属于谁。",
    ),
    "settings.tokens": ("Machines", "Zugänge für Maschinen", "接口令牌"),
    "settings.token-rule": (
        "A token lets a machine use the HTTP interface. It is shown once.",
        "Mit einem Token darf eine Maschine die HTTP-Schnittstelle benutzen. Er wird nur einmal gezeigt.",
        "设备凭令牌使用 HTTP 接口。令牌仅显示一次。",
    ),
    "settings.audit": ("Who did what", "Wer was getan hat", "操作记录"),
    "settings.when": ("When", "Wann", "时间"),
    "settings.by": ("Who", "Wer", "人员"),
    "settings.did": ("What", "Was", "操作"),
    "settings.from": ("From", "Von", "来源"),
    "role.operator": ("operator", "Bedienung", "操作员"),
    "role.engineer": ("engineer", "Technik", "工程师"),
    "role.admin": ("admin", "Admin", "管理员"),
    "audit.system": ("{name} (command line)", "{name} (Befehlszeile)", "{name}（命令行）"),
    "audit.login": ("logged in", "angemeldet", "登录"),
    "audit.login refused": ("was refused", "abgewiesen", "登录被拒"),
    "audit.account added": ("added an account:", "Konto angelegt:", "添加账户："),
    "audit.account removed": ("removed an account:", "Konto entfernt:", "删除账户："),
    "audit.account erased": ("erased an account", "Konto gelöscht", "抹除账户"),
    "audit.secret changed": ("changed a secret of", "PIN oder Passwort geändert:", "更改 PIN 或密码："),
    "audit.role changed": ("changed the role of", "Rolle geändert:", "更改角色："),
    "audit.token added": ("added a token:", "Token angelegt:", "添加令牌："),
    "audit.token removed": ("removed a token:", "Token entfernt:", "删除令牌："),
    "audit.class defined": ("defined a class", "Klasse angelegt", "新建类别"),
    "audit.class renamed": ("renamed a class", "Klasse umbenannt", "重命名类别"),
    "audit.head restored": ("rolled back to head", "wiederhergestellt: Lernstand", "回退到分类器"),
    "audit.operating point": ("changed what is rejected:", "Aussortierregel geändert:", "更改剔除规则："),
    # login
    "login.title": ("Log in", "Anmelden", "登录"),
    "login.name": ("Name", "Name", "姓名"),
    "login.secret": ("PIN or password", "PIN oder Passwort", "PIN 或密码"),
    "login.pad": ("Digits", "Ziffern", "数字键"),
    "login.back": ("Delete the last digit", "Letzte Ziffer löschen", "删除最后一位"),
    "login.go": ("Log in", "Anmelden", "登录"),
    "login.no-accounts": (
        "This device has no accounts: nobody gets in from here. On the device: headway agent user add",
        "Dieses Gerät hat keine Konten: Von hier kommt niemand hinein. Am Gerät: headway agent user add",
        "本设备没有账户，无法从此处登录。请在设备上运行：headway agent user add",
    ),
    # the classes, in the settings
    "settings.classes": ("Classes", "Klassen", "类别"),
    "settings.classes-none": ("There is no class yet.", "Es gibt noch keine Klasse.", "还没有类别。"),
    "settings.labels": ("Labels", "Zuordnungen", "标注"),
    "settings.labels-here": ("({n} from here)", "({n} von hier)", "（本机 {n} 个）"),
    "settings.rename": ("Rename", "Umbenennen", "重命名"),
    "settings.rename-rule": (
        "Its labels stay. A folder of master parts with the old name has to be renamed too.",
        "Die Zuordnungen bleiben. Ein Ordner mit Musterteilen muss ebenfalls umbenannt werden.",
        "标注保持不变。使用旧名称的标准样件文件夹也需重命名。",
    ),
    "settings.rename-by-name": (
        "Until somebody chooses the good classes under Quality, their names say what passes: a name that changes that "
        "is refused.",
        "Solange unter Qualität niemand die guten Klassen gewählt hat, entscheiden die Namen, was durchgeht: Ein Name, "
        "der das ändert, wird abgelehnt.",
        "在“质量”页选定合格类别之前，由类别名称决定哪些工件放行：会改变放行结果的名称将被拒绝。",
    ),
    "settings.merge": ("Merge…", "Zusammenlegen…", "合并…"),
    "settings.merge-title": ("Make two classes one", "Zwei Klassen zusammenlegen", "合并两个类别"),
    "settings.merge-into": ("Becomes part of", "Geht auf in", "并入"),
    "settings.merge-do": ("Merge for good", "Endgültig zusammenlegen", "永久合并"),
    "settings.merge-fleet": (
        "Classes are merged by the fleet, for all its devices.",
        "Zusammengelegt werden Klassen von der Flotte, für alle ihre Geräte.",
        "类别由设备群统一合并。",
    ),
    "settings.put-away": ("Put away", "Ausblenden", "收起"),
    "settings.put-away-is": ("put away", "ausgeblendet", "已收起"),
    "settings.bring-back": ("Bring back", "Einblenden", "恢复"),
    "settings.put-away-rule": (
        "A class without labels can be put away: it gets no button. It is back once it is used again.",
        "Eine Klasse ohne Zuordnungen lässt sich ausblenden: Sie bekommt keinen Knopf. Wird sie wieder benutzt, "
        "ist sie wieder da.",
        "没有标注的类别可以收起，不再显示按钮；再次使用时会自动恢复。",
    ),
    "js.merge-said": (
        "“{name}” (labels: {n}) becomes “{into}” (labels: {m}). This cannot be undone.",
        "„{name}“ (Zuordnungen: {n}) wird zu „{into}“ (Zuordnungen: {m}). Das lässt sich nicht rückgängig machen.",
        "“{name}”（{n} 个标注）将并入“{into}”（{m} 个标注）。此操作无法撤销。",
    ),
    "audit.classes merged": ("merged classes", "Klassen zusammengelegt", "合并类别"),
    "audit.class put away": ("put a class away", "Klasse ausgeblendet", "收起类别"),
    "audit.class brought back": ("brought a class back", "Klasse eingeblendet", "恢复类别"),
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


class Texts:
    """The texts and figures of one language.

    >>> t = Texts("de")
    >>> t("now.since", time="14:00"), t.percent(0.987), t.percent(0.005, 1), t.number(1.25, 2)
    ('Diese Schicht, seit 14:00', '99\\xa0%', '0,5\\xa0%', '1,25')
    """

    def __init__(self, language: str) -> None:
        self._column = [code for code, _ in LANGUAGES].index(language)

    def __call__(self, key: str, **values: object) -> str:
        """Return a key's text, its places filled."""
        text = TEXTS[key][self._column]
        return text.format(**values) if values else text

    def number(self, value: float, digits: int) -> str:
        """Return a number for people."""
        return f"{value:.{digits}f}".replace(".", self("common.decimal"))

    def percent(self, share: float, digits: int = 0) -> str:
        """Return a share for people."""
        return self("common.percent", n=self.number(100 * share, digits))


def for_scripts(language: str) -> dict[str, str]:
    """Return the texts that the page's scripts use."""
    column = [code for code, _ in LANGUAGES].index(language)
    return {key: text[column] for key, text in TEXTS.items() if key.split(".")[0] in _SCRIPT_PAGES}
