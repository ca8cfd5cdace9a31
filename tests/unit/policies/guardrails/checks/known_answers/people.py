"""Texts with persons `{p:...}`, addresses `{a:...}` and places `{c:...}` marked, and texts with none that look like it.
A place beside an address is a part of it."""

MARKED = """
My name is {p:Anna Schmidt} and I live at {a:12 Baker Street, London NW1 6XE}.
Please e-mail {p:John} about the report.
{p:Maria Garcia} will meet {p:Tom Becker} in {c:Madrid} on Friday.
Call Dr. {p:Nguyen} tomorrow morning.
The patient, Mr {p:O'Brien}, was admitted on Tuesday.
Ship it to {p:Sarah Connor}, {a:742 Evergreen Terrace, Springfield, IL 62704}.
{p:Rajesh Kumar} wrote the first draft; {p:Emily} corrected it.
Dear Mrs {p:Johnson}, thank you for your letter.
I spoke with {p:Michael Brown} from accounting.
The contract was signed by {p:Elena Petrova} and {p:James O'Connor}.
Our driver {p:Ahmed Hassan} is on his way to {a:221B Baker Street}.
Can you book a table for {p:David Miller}?
{p:Lisa Wong}'s laptop is broken.
Send the invoice to {p:Peter Jones}, {a:5 Church Road, Oxford OX1 2JD}.
This is {p:Robert Taylor} speaking.
{p:Fatima Al-Sayed} applied for the job in {c:Chicago}.
Ask {p:Kevin} whether {p:Laura} has the keys.
My sister {p:Jessica} moved to {a:88 Pine Avenue, Portland, OR 97205}.
The witness, {p:Daniel Kim}, lives at {a:14 Maple Drive, Austin, Texas 78701}.
{p:Olivia Martinez} scheduled a call with {p:Noah Williams}.
Forward this to {p:Priya Patel} and {p:Chen Wei}.
Signed, {p:William Harris}
Author: {p:Charlotte Evans}
Customer {p:Benjamin Clark} complained about the delay.
The tenant at {a:310 West 57th Street, New York, NY 10019} has not paid.
My address is {a:77 Massachusetts Avenue, Cambridge, MA 02139}.
Deliver to {a:1600 Amphitheatre Parkway, Mountain View, CA 94043}.
He grew up at {a:9 Rue de Rivoli, Paris}.
We moved from {a:23 Elm Street} to {a:45 Oak Lane} last year.
The parcel for Mrs {p:Thompson} goes to {a:Flat 3, 18 Queen's Road, Bristol BS8 1QU}.
{p:Sophia Lee} and her husband {p:Mark} have two children.
Interview with {p:Isabella Rossi}, candidate for the role of analyst.
I am {p:Lucas Andersen}, born in {c:Copenhagen}.
Hi {p:Grace}, could you send me the file?
Thanks, {p:Henry}
{p:Mohammed Ali} paid with his card.
As {p:Victoria Adams} told me, {p:Jack} is ill today.
Patient: {p:George Wright}, room 12.
The landlord is {p:Edward Collins}, {a:2 Hill Street, Edinburgh EH2 3JZ}.
Please update the record of {p:Hannah Fischer}.
{p:Carlos Mendez} lives in {c:Houston} with {p:Ana}.
{p:Yuki Tanaka} wants to change her seat.
The account belongs to {p:Samuel Green}.
My boss, {p:Angela White}, is on leave.
Tell {p:Zoe} that {p:Ethan} called.
The letter from {p:Amelia Scott} arrived yesterday.
Ich heiße {p:Jürgen Müller} und wohne in der {a:Hauptstraße 5, 10115 Berlin}.
Frau {p:Sabine Wagner} hat gestern angerufen.
Bitte schicken Sie das Paket an {p:Thomas Schneider}, {a:Gartenweg 12, 80331 München}.
Herr {p:Weber} ist heute nicht im Büro.
Der Vertrag mit {p:Claudia Hoffmann} endet im Mai.
Meine Adresse ist {a:Lindenallee 44, 50667 Köln}.
Je m'appelle {p:Pierre Dubois} et j'habite {a:15 rue Victor Hugo, 69002 Lyon}.
Madame {p:Lefebvre} est absente.
Veuillez contacter {p:Camille Moreau} au service clients.
Me llamo {p:Javier Fernández} y vivo en la {a:Calle Mayor 10, 28013 Madrid}.
La señora {p:Carmen Ruiz} no está.
Envíe el paquete a {p:Lucía Gómez}, {a:Avenida de la Paz 3, Sevilla}.
Mi chiamo {p:Giulia Bianchi} e abito in {a:Via Roma 22, 20121 Milano}.
Il signor {p:Ferrari} ha chiamato ieri.
De heer {p:Jan de Vries} woont op {a:Kerkstraat 7, 1017 GA Amsterdam}.
""".strip().split("\n")

NONE = """
The function getUserName returns the name of the user.
Open the file main.py and run the tests.
The average temperature in July was 24 degrees.
Please summarise the document in three sentences.
What is the difference between a list and a tuple?
The company will publish its results on Monday.
Add two eggs, a cup of flour and a pinch of salt.
SELECT id, total FROM orders WHERE state = 'open';
The train leaves at half past nine.
Our warranty covers parts and labour for two years.
Chapter 12 explains how engines work.
The server answered with status 503 after 30 seconds.
Der Zug hat zehn Minuten Verspätung.
La réunion commence à neuf heures.
El informe está listo para su revisión.
The new model is faster and uses less memory.
Turn left at the lights and go straight on.
Version 3.11 fixes a bug in the parser.
Water boils at 100 degrees at sea level.
The quick brown fox jumps over the lazy dog.
import numpy as np
Press the red button to stop the machine.
The budget for next year has been approved.
He was late because of the traffic.
She likes tea more than coffee.
A rose is a rose.
The cache keeps answers for an hour.
Error: connection refused on port 8080.
We need to hire two more engineers this quarter.
The mayor opened the new bridge yesterday.
Check the box and sign at the bottom.
Use a dictionary instead of many conditions.
The results are shown in table 4.
Monday and Tuesday are full, Wednesday is free.
The patient should take one tablet twice a day.
Interest rates rose by half a percent.
Please find attached the slides of the talk.
The customer asked for a refund of 40 dollars.
No one was hurt in the accident.
The museum is closed in winter.
""".strip().split("\n")
