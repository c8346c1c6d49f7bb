-- Creates a user and a database for each data-plane service, when the data folder is created. A service can connect to its
-- own database only.
\set ON_ERROR_STOP on

\set password `cat /run/secrets/flights_password`
CREATE ROLE flights LOGIN PASSWORD :'password';
CREATE DATABASE flights OWNER flights;
REVOKE ALL ON DATABASE flights FROM PUBLIC;

\set password `cat /run/secrets/hotels_password`
CREATE ROLE hotels LOGIN PASSWORD :'password';
CREATE DATABASE hotels OWNER hotels;
REVOKE ALL ON DATABASE hotels FROM PUBLIC;

\set password `cat /run/secrets/payments_password`
CREATE ROLE payments LOGIN PASSWORD :'password';
CREATE DATABASE payments OWNER payments;
REVOKE ALL ON DATABASE payments FROM PUBLIC;

\set password `cat /run/secrets/notifications_password`
CREATE ROLE notifications LOGIN PASSWORD :'password';
CREATE DATABASE notifications OWNER notifications;
REVOKE ALL ON DATABASE notifications FROM PUBLIC;

REVOKE CONNECT ON DATABASE postgres, perdure FROM PUBLIC;
